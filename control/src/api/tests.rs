#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::server::{Answer, MAX_CLIENTS, to_value};
use super::types::{Flows, Status, Version};
use super::*;

/// Lines of the big list, of a thousand bytes each: several times what a socket holds unread.
const LINES: usize = 1000;

/// Answers drops with a big list, status with a refusal, routes never.
struct Fake;

impl StateView for Fake {
    fn answer(&self, request: Request) -> Answer<'_> {
        Box::pin(async move {
            match request {
                Request::Version => to_value(&Version::own()),
                Request::Status => Err(ApiError::new(ErrorCode::NotReady, "not yet")),
                Request::Flows { limit } => {
                    to_value(&Flows { flows: vec![], total: u64::from(limit.unwrap_or(7)) })
                }
                Request::Drops => Ok(json!(vec!["x".repeat(1000); LINES])),
                Request::Routes => std::future::pending().await,
                other => to_value(&format!("{other:?}")),
            }
        })
    }
}

struct Server {
    dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("fastpath-api-{}-{n}", std::process::id()));
        let (stop, stopped) = oneshot::channel();
        let mut instance = Instance::acquire(&dir).expect("alone");
        let listener = instance.listen().expect("socket");
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).expect("listener");
                tokio::select! {
                    () = serve(listener, Arc::new(Fake)) => {}
                    _ = stopped => {}
                }
            });
            drop(instance);
        });
        Self { dir, stop: Some(stop), thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET_NAME)
    }

    fn raw(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("connect")
    }

    fn ask(&self, line: &[u8]) -> Value {
        let mut stream = self.raw();
        stream.write_all(line).expect("send");
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).expect("reply");
        serde_json::from_str(&reply).expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(std::thread::JoinHandle::join);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn requests_and_answers() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket()).expect("connect");
    assert_eq!(client.ask::<Version>(Request::Version).expect("version"), Version::own());
    assert_eq!(client.ask::<Flows>(Request::Flows { limit: Some(3) }).expect("flows").total, 3);
    assert_eq!(client.ask::<Flows>(Request::Flows { limit: None }).expect("flows").total, 7);
    match client.ask::<Status>(Request::Status) {
        Err(ClientError::Refused(e)) => assert_eq!(e, ApiError::new(ErrorCode::NotReady, "not yet")),
        other => panic!("{other:?}"),
    }
    match client.ask::<Version>(Request::Ports) {
        Err(ClientError::Answer(_)) => {}
        other => panic!("{other:?}"),
    }
    // A long answer comes whole.
    assert_eq!(client.ask::<Vec<String>>(Request::Drops).expect("drops").len(), LINES);
}

#[test]
fn wrong_requests_are_told_why() {
    let server = Server::start();
    for (line, code, message) in [
        ("", "bad-request", "not a request: EOF"),
        ("nonsense", "bad-request", "not a request: expected"),
        ("[]", "bad-request", "\"version\" is missing"),
        ("{\"request\":\"status\"}", "bad-request", "\"version\" is missing"),
        ("{\"version\":2,\"request\":\"new\"}", "wrong-version", "speaks protocol version 1, not 2"),
        ("{\"version\":1}", "bad-request", "request"),
        ("{\"version\":1,\"request\":\"nope\"}", "bad-request", "unknown variant `nope`"),
        ("{\"version\":1,\"request\":\"flows\",\"limit\":-1}", "bad-request", "invalid value"),
        ("{\"version\":1,\"request\":\"flows\",\"limit\":\"x\"}", "bad-request", "invalid type"),
    ] {
        let reply = server.ask(format!("{line}\n").as_bytes());
        assert_eq!(reply["error"]["code"], code, "{line}: {reply}");
        assert!(reply["error"]["message"].as_str().expect("text").contains(message), "{line}: {reply}");
        assert_eq!((reply["version"].as_u64(), reply.get("result")), (Some(1), None), "{line}");
    }
    let long = vec![b' '; MAX_REQUEST + 10];
    let reply = server.ask(&long);
    assert_eq!(reply["error"]["code"], "too-large", "{reply}");
    // As long as allowed, with its newline.
    let mut fits = b"{\"version\":1,\"request\":\"version\"}".to_vec();
    fits.resize(MAX_REQUEST - 1, b' ');
    fits.push(b'\n');
    assert_eq!(server.ask(&fits)["result"]["protocol"], 1);
    // Without a newline at the end of the stream.
    assert_eq!(server.ask(b"{\"version\":1,\"request\":\"version\"}")["result"]["protocol"], 1);
}

#[test]
fn too_many_and_slow_clients_do_not_hold_up_others() {
    let server = Server::start();
    // Half of the places: clients that ask and never read; one request is never answered.
    let mut slow: Vec<UnixStream> = Vec::new();
    for i in 0..MAX_CLIENTS - 1 {
        let mut stream = server.raw();
        let request = if i == 0 { "routes" } else { "drops" };
        stream.write_all(format!("{{\"version\":1,\"request\":\"{request}\"}}\n").as_bytes()).expect("send");
        slow.push(stream);
    }
    let mut client = Client::connect(&server.socket()).expect("connect");
    assert_eq!(client.ask::<Version>(Request::Version).expect("version"), Version::own());
    // Every place is taken: one more is told so.
    let mut text = String::new();
    server.raw().read_to_string(&mut text).expect("refusal");
    let refusal: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(refusal["error"]["code"], "busy");
    match Client::connect(&server.socket()).expect("connect").ask::<Version>(Request::Version) {
        Err(ClientError::Refused(e)) => assert_eq!(e.code, ErrorCode::Busy),
        other => panic!("{other:?}"),
    }
    // Places are given back.
    drop(slow);
    let again = (0..1000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        Client::connect(&server.socket()).ok()?.ask::<Version>(Request::Version).ok()
    });
    assert_eq!(again, Some(Version::own()));
}

#[test]
fn one_daemon_per_state_folder() {
    let server = Server::start();
    match Instance::acquire(&server.dir) {
        Err(e @ InstanceError::Taken { .. }) => {
            let pid = std::process::id();
            let dir = server.dir.display();
            assert_eq!(
                e.to_string(),
                format!(
                    "another fastpath daemon (pid {pid}) runs in {dir}; give this one its own daemon.state_dir"
                )
            );
        }
        other => panic!("{other:?}"),
    }
    let mode = std::fs::metadata(server.socket()).expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_a_dead_daemon_left_is_replaced() {
    let server = Server::start();
    let (dir, socket) = (server.dir.join("x"), server.dir.join("x").join(SOCKET_NAME));
    std::fs::create_dir(&dir).expect("mkdir");
    // As after kill -9: a socket nobody listens on, a lock file nobody holds.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
    std::fs::write(dir.join("fastpath.lock"), "4711\n").expect("write");
    match Client::connect(&socket) {
        Err(e @ ClientError::Unreachable { .. }) => {
            assert!(e.to_string().starts_with("no daemon answers at "), "{e}")
        }
        other => panic!("{other:?}"),
    }
    let mut instance = Instance::acquire(&dir).expect("lock");
    let listener = instance.listen().expect("socket");
    UnixStream::connect(&socket).expect("listening");
    let own_pid = std::fs::read_to_string(dir.join("fastpath.lock")).expect("lock file");
    assert_eq!(own_pid, format!("{}\n", std::process::id()));
    drop((listener, instance));
    assert!(!socket.exists());
    drop(Instance::acquire(&dir).expect("free again"));
    // A socket that is not ours is left alone.
    let instance = Instance::acquire(&dir).expect("lock");
    std::fs::write(&socket, "").expect("write");
    drop(instance);
    assert!(socket.exists());
}

#[test]
fn who_may_not_ask_is_told_so() {
    let server = Server::start();
    let socket = server.socket();
    // Root may everything until it is somebody else; somebody else may nothing on a socket of mode 0.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).expect("chmod");
    let refused = std::thread::spawn(move || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        Client::connect(&socket).map(drop)
    });
    match refused.join().expect("thread") {
        Err(e @ ClientError::Denied { .. }) => assert!(e.to_string().contains("only root may"), "{e}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn socket_errors_name_the_path() {
    let long = std::env::temp_dir().join("x".repeat(120));
    let mut instance = Instance::acquire(&long).expect("folder");
    let e = instance.listen().expect_err("too long").to_string();
    assert!(e.contains(&"x".repeat(120)), "{e}");
    drop(instance);
    std::fs::remove_dir_all(&long).expect("clean up");
    let e = Instance::acquire(Path::new("/proc/none")).expect_err("no folder there").to_string();
    assert!(e.starts_with("/proc/none: "), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a client sends, each line has one answer, and the next client is served.
    #[test]
    fn any_bytes_are_answered_or_refused(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..5)) {
        static SERVER: std::sync::LazyLock<Server> = std::sync::LazyLock::new(Server::start);
        let mut stream = SERVER.raw();
        let mut want = 0;
        for line in &lines {
            let line: Vec<u8> = line.iter().copied().filter(|b| *b != b'\n').chain([b'\n']).collect();
            stream.write_all(&line).expect("send");
            want += 1;
        }
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let replies: Vec<String> = BufReader::new(stream).lines().map(|l| l.expect("reply")).collect();
        prop_assert_eq!(replies.len(), want);
        for reply in replies {
            let reply: Value = serde_json::from_str(&reply).expect("JSON");
            prop_assert!(reply["error"]["code"].is_string(), "{}", reply);
        }
    }

    /// A request is the same after the wire.
    #[test]
    fn requests_survive_the_wire(limit in any::<Option<u32>>()) {
        let all = [
            Request::Version, Request::Status, Request::Endpoints, Request::Nodes, Request::Flows { limit },
            Request::Routes, Request::Neighbors, Request::Drops, Request::Ports, Request::Runtime,
        ];
        for request in all {
            let envelope = Envelope { version: PROTOCOL, request };
            let text = serde_json::to_string(&envelope).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<Envelope>(&text).expect("read"), envelope);
        }
    }
}
