//! The binary as a script sees it: output, exit codes, a daemon started and stopped.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BIN: &str = env!("CARGO_BIN_EXE_fastpath");

fn fastpath(args: &[&str]) -> Output {
    Command::new(BIN).args(args).output().expect("run")
}

fn out(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fastpath-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temp dir");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("write");
        path.to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The printed file is one that the daemon takes, with and without a profile, also without any rights.
#[test]
fn tune_prints_a_configuration() {
    let dir = Folder::new("tune");
    for args in
        [&["tune"][..], &["tune", "-o", "toml", "--profile", "throughput"], &["tune", "--profile", "small"]]
    {
        let o = fastpath(args);
        assert_eq!((o.status.code(), err(&o)), (Some(0), String::new()), "{args:?}");
        let text = out(&o);
        assert!(text.starts_with("# Configuration of `fastpath run` for this machine"), "{text}");
        assert!(text.contains("\n# Linux ") && text.contains("\n[workers]\n#"), "{text}");
        let file = dir.file("tuned.toml", &text);
        let checked = fastpath(&["config", "check", &file]);
        assert_eq!(checked.status.code(), Some(0), "{}\n{text}", err(&checked));
    }
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]).arg(BIN).args([
        "tune",
        "--profile",
        "dense",
        "-o",
        "json",
    ]);
    let o = nobody.output().expect("setpriv (package util-linux) starts");
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    let json: serde_json::Value = serde_json::from_slice(&o.stdout).expect("JSON");
    assert_eq!(json["profile"], "dense");
    assert!(json["machine"]["cores"].as_array().is_some_and(|c| !c.is_empty()), "{json:#}");
    let settings = json["settings"].as_array().expect("settings");
    assert!(settings.iter().all(|s| s["reason"].as_str().is_some_and(|r| !r.is_empty())), "{json:#}");
    let file = dir.file("dense.toml", json["config"].as_str().expect("a file"));
    assert_eq!(fastpath(&["config", "check", &file]).status.code(), Some(0));
}

#[test]
fn config_check() {
    let dir = Folder::new("config");
    let good = dir.file("good.toml", "[overlay]\nvni = 5\n");
    let o = fastpath(&["config", "check", &good]);
    assert_eq!((o.status.code(), out(&o), err(&o)), (Some(0), format!("{good}: ok\n"), String::new()));
    let bad = dir.file("bad.toml", "[overlay]\nvni = 0\nencap = \"gre\"\n");
    let o = fastpath(&["config", "check", &bad]);
    assert_eq!((o.status.code(), out(&o)), (Some(1), String::new()));
    let lines: Vec<String> = err(&o).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with(&format!("{bad}:2: overlay.vni: 0 is not")), "{lines:?}");
    assert!(lines[1].starts_with(&format!("{bad}:3: overlay.encap: \"gre\" is not one of")), "{lines:?}");
    let o = fastpath(&["config", "check", &bad, "-o", "json"]);
    assert_eq!((o.status.code(), err(&o)), (Some(1), String::new()));
    let json: serde_json::Value = serde_json::from_slice(&o.stdout).expect("JSON");
    assert_eq!((json["ok"].as_bool(), json["errors"][1]["line"].as_u64()), (Some(false), Some(3)));
    let o = fastpath(&["run", "--config", &bad]);
    assert_eq!(o.status.code(), Some(1));
    assert!(err(&o).starts_with(&format!("fastpath: {bad}:2: ")), "{}", err(&o));
    let reference = fastpath(&["config", "reference"]);
    let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/fastpath.toml");
    assert_eq!(out(&reference), std::fs::read_to_string(documented).expect("documented file"));
}

#[test]
fn exit_codes_without_a_daemon() {
    let dir = Folder::new("none");
    let state = dir.0.to_string_lossy().into_owned();
    for what in [&["status"][..], &["show", "drops"], &["show", "flows", "-o", "json"]] {
        let o = fastpath(&[&["--state-dir", &state], what].concat());
        assert_eq!((o.status.code(), out(&o)), (Some(3), String::new()), "{what:?}");
        assert!(
            err(&o).starts_with("fastpath: no daemon answers at ") && err(&o).lines().count() == 1,
            "{}",
            err(&o)
        );
    }
    let o = fastpath(&["show", "nonsense"]);
    assert_eq!(o.status.code(), Some(2));
    let o = fastpath(&["version", "--state-dir", &state]);
    assert_eq!((o.status.code(), out(&o)), (Some(0), format!("fastpath {}\n", env!("CARGO_PKG_VERSION"))));
    // Whoever reads our output may stop reading.
    let mut child = Command::new(BIN)
        .args(["config", "reference"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run");
    drop(child.stdout.take());
    let o = child.wait_with_output().expect("wait");
    assert_eq!((o.status.code(), err(&o)), (Some(0), String::new()));
}

/// The source's side of a running daemon; what needs devices is shown in the lab.
#[test]
fn a_daemon_started_asked_and_stopped() {
    let dir = Folder::new("daemon");
    let manifests = dir.0.join("manifests");
    std::fs::create_dir(&manifests).expect("mkdir");
    let pod = |ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{nodeName: n1}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    std::fs::write(manifests.join("p.yaml"), pod("10.0.0.1")).expect("write");
    let state = dir.0.join("state").to_string_lossy().into_owned();
    // Nothing of a daemon that may run on this machine is touched.
    let pins = Folder(PathBuf::from(format!("/sys/fs/bpf/fastpath-cli-{}", std::process::id())));
    let config = dir.file(
        "c.toml",
        &format!(
            "[node]\nname = \"n1\"\n[daemon]\nstate_dir = \"{state}\"\n[xdp]\npin_dir = \"{}\"\n[uplink]\ninterfaces = [\"fp-none\"]\n[source]\npath = \"{}\"\n",
            pins.0.display(),
            manifests.display()
        ),
    );
    let start =
        || Command::new(BIN).args(["run", "--config", &config]).stderr(Stdio::piped()).spawn().expect("run");
    let mut daemon = Killed(start());
    let ask = |what: &[&str]| {
        let o = fastpath(&[&["--state-dir", &state, "-o", "json"], what].concat());
        (o.status.code(), serde_json::from_slice::<serde_json::Value>(&o.stdout).unwrap_or_default())
    };
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(30), "{what}: not seen");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until("socket", &|| ask(&["show", "endpoints"]).1[0]["addresses"][0] == "10.0.0.1");
    std::fs::write(manifests.join("p.yaml"), pod("10.0.0.2")).expect("write");
    until("change", &|| ask(&["show", "endpoints"]).1[0]["addresses"][0] == "10.0.0.2");
    std::fs::write(manifests.join("p.yaml"), pod("nonsense")).expect("write");
    until("problem", &|| ask(&["status"]).1["problems"][0]["severity"] == "error");
    let (_, status) = ask(&["status"]);
    assert_eq!(status["node"], "n1");
    assert_eq!(status["pid"], daemon.0.id());
    assert!(status["problems"][0]["origin"].as_str().expect("origin").ends_with("p.yaml:5"), "{status}");
    assert_eq!(ask(&["show", "endpoints"]).1[0]["addresses"][0], "10.0.0.2");
    assert_eq!(ask(&["version"]).1["daemon"]["protocol"], 1);
    // A question that is none is told from one about what is not there; the command line does not even send it.
    let explain = |from: &str| {
        let mut socket = UnixStream::connect(Path::new(&state).join("fastpath.sock")).expect("connect");
        let to = r#""to":"192.0.2.1","proto":"tcp","dport":1"#;
        writeln!(socket, r#"{{"version":1,"request":"explain","from":"{from}",{to}}}"#).expect("send");
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).expect("reply");
        serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["error"]["code"].clone()
    };
    assert_eq!(
        (explain("no/such/thing"), explain("default/nobody")),
        ("bad-request".into(), "not-found".into())
    );
    // A second one in the same state folder is refused.
    let second = start().wait_with_output().expect("wait");
    assert_eq!(second.status.code(), Some(1));
    assert!(
        err(&second).contains(&format!("another fastpath daemon (pid {}) runs in {state}", daemon.0.id()))
    );
    nix::sys::signal::kill(pid(&daemon.0), nix::sys::signal::Signal::SIGTERM).expect("kill");
    let status = daemon.0.wait().expect("wait");
    assert_eq!(status.code(), Some(0));
    assert!(!Path::new(&state).join("fastpath.sock").exists());
    assert!(!pins.0.exists(), "pins are left");
}

fn pid(child: &Child) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"))
}

/// Ends with the test also when that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
