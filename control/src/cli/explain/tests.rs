use clap::Parser;
use serde_json::{Value, json};

use crate::cli::{Cli, FAILED, Failure, run};
use crate::explain::tests::{CLUSTER, Folder};

/// Exit code, standard output and the message of `fastpath ARGS --manifests FOLDER`.
fn fastpath(folder: &Folder, args: &str) -> (u8, String, String) {
    let line = format!("fastpath {args} --manifests {}", folder.0.display());
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let mut out = Vec::new();
    let (code, message) = match run(cli, &mut out) {
        Ok(()) => (0, String::new()),
        Err(Failure::Message(code, message)) => (code, message),
        Err(Failure::Said(code)) => (code, String::new()),
        Err(Failure::Closed) => panic!("closed"),
    };
    (code, String::from_utf8(out).unwrap(), message)
}

#[test]
fn wrong_command_lines() {
    for line in [
        "explain",
        "explain --from a/b",
        "explain --from a/b --to c/d --nope",
        "explain --batch q --from a/b",
        "policy",
        "policy lint",
    ] {
        let parsed = Cli::try_parse_from(format!("fastpath {line}").split(' '));
        assert_eq!(parsed.err().map(|e| e.exit_code()), Some(2), "{line}");
    }
}

#[test]
fn one_query() {
    let folder = Folder::new(CLUSTER);
    let (code, out, _) =
        fastpath(&folder, "explain --from shop/web --to shop/db --proto tcp --dport 5432 -o json");
    assert_eq!((code, out.lines().count()), (0, 1));
    assert!(
        out.starts_with(
            r#"{"verdict":"allow","egress":{"verdict":"allow","policy":"shop/web","rule":0},"ingress":"#
        ),
        "{out}"
    );

    let (code, out, _) = fastpath(&folder, "explain --from shop/db --to shop/svc/empty --dport 80");
    assert_eq!(code, 0);
    assert!(out.starts_with("shop/db -> shop/svc/empty TCP 80: reject\n"), "{out}");
    assert!(out.contains("shop/empty has no usable backend"), "{out}");

    let (code, out, _) = fastpath(&folder, "explain --from shop/web --to shop/db --dport 80");
    assert_eq!(code, 0);
    for text in [
        "shop/web -> shop/db TCP 80: deny\n",
        "STEP      VERDICT   DECIDED BY",
        "egress    deny      isolated: no policy allows",
        "Why shop/db may not accept TCP 80 from pod shop/web (10.0.0.1, node a)\n  policy shop/db (",
        "      peer matches\n      port does not match: TCP 5432\n",
    ] {
        assert!(out.contains(text), "{text}\n{out}");
    }

    for (args, message) in [
        ("explain --from shop/x --to shop/db --dport 80", "no pod shop/x"),
        ("explain --from shop/web --to shop/db --dport 99999", "port 99999 is not a number from 1 to 65535"),
        ("explain --from shop/web --to shop/db --dport http", "port http is not a number from 1 to 65535"),
        ("explain --from shop/web --to shop/db", "\"dport\" is missing"),
    ] {
        let (code, out, said) = fastpath(&folder, args);
        assert_eq!((code, out.as_str(), said.as_str()), (FAILED, "", message), "{args}");
    }
}

#[test]
fn a_batch() {
    let folder = Folder::new(CLUSTER);
    let file = folder.0.join("queries.jsonl");
    let queries = [
        json!({"from": "shop/web", "to": "shop/db", "proto": "tcp", "dport": 5432}),
        json!({"from": "shop/web", "to": "shop/gone", "proto": "tcp", "dport": 5432}),
    ];
    std::fs::write(&file, queries.map(|q| q.to_string()).join("\n")).unwrap();
    let (code, out, _) = fastpath(&folder, &format!("explain --batch {}", file.display()));
    let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((code, lines.len()), (0, 2));
    assert_eq!((&lines[0]["verdict"], &lines[1]), (&json!("allow"), &json!({"error": "no pod shop/gone"})));

    let (code, _, message) = fastpath(&folder, "explain --batch /no/such/file");
    assert!(code == FAILED && message.starts_with("/no/such/file: cannot be read: "), "{code} {message}");
    let gone = Folder(folder.0.join("gone"));
    let (code, _, message) = fastpath(&gone, &format!("explain --batch {}", file.display()));
    assert!(code == FAILED && message.contains("gone: cannot be read"), "{code} {message}");
}

#[test]
fn no_daemon_is_exit_code_3() {
    let line = "fastpath --state-dir /no/such/folder explain --from shop/web --to shop/db --dport 80";
    let failed = run(Cli::try_parse_from(line.split(' ')).unwrap(), &mut Vec::new());
    assert!(matches!(failed, Err(Failure::Message(3, _))), "{failed:?}");
}

#[test]
fn lint_says_where() {
    let folder = Folder::new(CLUSTER);
    let (code, out, _) = fastpath(&folder, "policy lint");
    let line = CLUSTER.lines().position(|l| l == "  egress:").unwrap() + 1;
    assert_eq!(code, FAILED);
    assert!(
        out.contains(&format!("all.yaml:{line}: shop/web: ")) && out.contains("[no-dns]"),
        "{line} {out}"
    );
    let (code, out, _) = fastpath(&folder, "policy lint -o json");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json[0]["policy"], &json[0]["kind"]), (FAILED, &json!("shop/web"), &json!("no-dns")));

    let nothing = Folder::new("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n");
    assert_eq!(fastpath(&nothing, "policy lint"), (0, String::new(), String::new()));
}
