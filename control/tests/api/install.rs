//! `configs/k8s/install.yaml` at a real API server: accepted as it is, and its account is allowed exactly what is used.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::apiserver::INSTALL;

/// Group, resource with its subresource, verb.
type Right = (String, String, String);

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

/// What the role allows that the server has.
fn allowed(server: &Server) -> BTreeSet<Right> {
    let role =
        server.client().get("rbac.authorization.k8s.io/v1", "ClusterRole", "", "fastpath").expect("a role");
    let list = |v: &Value| v.as_array().expect("a list").iter().map(text).collect::<Vec<String>>();
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                let verbs = list(&rule["verbs"]).into_iter();
                rights.extend(verbs.map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    rights
}

/// What the account asked for, by the server's audit log; nothing of it was refused.
fn used(server: &Server) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for event in server.audit() {
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(200);
        let decision = &event["annotations"]["authorization.k8s.io/decision"];
        assert!(code != 401 && code != 403 && *decision != "forbid", "{event:#}");
        let object = &event["objectRef"];
        // Without one it is no resource: `/version`.
        if !object.is_null() {
            let (resource, sub) = (text(&object["resource"]), text(&object["subresource"]));
            let resource = if sub.is_empty() { resource } else { format!("{resource}/{sub}") };
            rights.insert((text(&object["apiGroup"]), resource, text(&event["verb"])));
        }
    }
    rights
}

/// By kubectl, every field known to the server; and a second time there is nothing to change.
#[test]
fn it_is_accepted() {
    let server = Server::start(Options::default());
    // What is tried only is not there for what comes after it.
    server.kubectl(&["create", "namespace", "fastpath-system"]);
    let apply = ["apply", "--validate=strict", "-f", INSTALL];
    let tried = server.kubectl(&[&apply[..], &["--dry-run=server"]].concat());
    assert_eq!(tried.lines().filter(|l| l.ends_with("(server dry run)")).count(), 6, "{tried}");
    assert!(
        server.client().get("apps/v1", "DaemonSet", "fastpath-system", "fastpath").is_err(),
        "only tried"
    );
    let made = server.kubectl(&apply);
    assert!(made.contains("daemonset.apps/fastpath created"), "{made}");
    let again = server.kubectl(&apply);
    assert_eq!(again.lines().filter(|l| l.ends_with(" unchanged")).count(), 6, "{again}");
    let token = server.kubectl(&["create", "token", "fastpath", "-n", "fastpath-system"]);
    assert_eq!(token.trim().split('.').count(), 3, "a JSON web token");
}

/// With the token of that account everything works, nothing is refused, and each rule of its role is used.
#[test]
fn rights_are_enough_and_the_least() {
    let server = Server::start(Options::default());
    let source = Source::start(&server.account_config(), None);
    source.until("the first state", |u, s| (u.synced && s.connected).then_some(()));
    let mistake = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "annotations": {"fastpath.io/mac": "nonsense"}},
        "spec": {"containers": [{"name": "c", "image": "none"}]}});
    let update = source.has(&server.client().apply(&[mistake]));
    assert_eq!(update.problems.iter().map(|p| p.origin.kind()).collect::<Vec<_>>(), [Some("Pod")]);
    source.until("an Event is written", |_, s| (s.reported == 1).then_some(()));
    assert_eq!(source.state().errors, 0, "{:?}", source.state());
    assert_eq!(used(&server), allowed(&server));
    drop(source);

    // The doctor asks for no more than every account may.
    let doctor = |kubeconfig: &Path| doctor(&server, kubeconfig);
    let account = server.dir().join("account.kubeconfig");
    assert_eq!(doctor(&account)[1..], [("error".to_owned(), "there is no Node node-x".to_owned())]);
    server.client().apply(&[json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-x"}})]);
    let good = doctor(&account);
    assert_eq!(good.len(), 1, "{good:?}");
    assert!(
        good[0].0 == "ok" && good[0].1.starts_with(&format!("{} answers: v1.", server.url())),
        "{good:?}"
    );
    let review = ("authorization.k8s.io", "selfsubjectaccessreviews", "create");
    let review = (review.0.to_owned(), review.1.to_owned(), review.2.to_owned());
    assert_eq!(used(&server), allowed(&server).into_iter().chain([review]).collect());

    // The condition is a right more, which the optional piece gives.
    let with_condition = doctor_of(&server, &account, "node_condition = true\n");
    assert_eq!(with_condition[1..], [("error".to_owned(), "may not patch nodes/status".to_owned())]);
    server.kubectl(&[
        "apply",
        "-f",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/k8s/node-condition.yaml"),
    ]);
    let good = doctor_of(&server, &account, "node_condition = true\n");
    assert!(good.len() == 1 && good[0].0 == "ok", "{good:?}");

    // An account without the role: each right by name, and nothing else.
    let denied: BTreeSet<String> =
        doctor(&server.agent_config()).into_iter().skip(1).map(|(_, said)| said).collect();
    let rights = fastpath_control::source::kubernetes::rights(false);
    assert_eq!(denied, rights.iter().map(|right| format!("may not {right}")).collect());
}

/// What the doctor says of the API server: level, what was found.
fn doctor(server: &Server, kubeconfig: &Path) -> Vec<(String, String)> {
    doctor_of(server, kubeconfig, "")
}

/// The same with more keys of `[source]`.
fn doctor_of(server: &Server, kubeconfig: &Path, more: &str) -> Vec<(String, String)> {
    let file = server.dir().join("doctor.toml");
    let kubeconfig = kubeconfig.display();
    let config = format!(
        "[node]\nname = \"node-x\"\n[source]\nkind = \"kubernetes\"\nkubeconfig = \"{kubeconfig}\"\n{more}"
    );
    std::fs::write(&file, config).expect("write the config");
    let out = Command::new(env!("CARGO_BIN_EXE_fastpath"))
        .args(["doctor", "-o", "json", "--config"])
        .arg(&file)
        .output()
        .expect("the doctor starts");
    let findings: Vec<Value> = serde_json::from_slice(&out.stdout).expect("JSON");
    let of_api = findings.iter().filter(|f| f["check"] == "API server");
    of_api.map(|f| (text(&f["level"]), text(&f["found"]))).collect()
}

/// No server, no credentials: one line that says so.
#[test]
fn the_doctor_without_a_server() {
    let mut server = Server::start(Options::default());
    let account = server.account_config();
    server.kill_apiserver();
    let said = doctor(&server, &account);
    assert!(said.len() == 1 && said[0].0 == "error" && said[0].1.contains("cannot be reached: "), "{said:?}");
    let said = doctor(&server, Path::new("/nowhere/kubeconfig"));
    assert!(said.len() == 1 && said[0].0 == "error" && said[0].1.contains("/nowhere/kubeconfig"), "{said:?}");
}
