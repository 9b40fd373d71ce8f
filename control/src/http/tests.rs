//! The server over real sockets, and the shape of health answers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use super::health::{Check, reply};
use super::*;

struct Echo;

impl Handler for Echo {
    fn get<'a>(&'a self, get: Get<'a>) -> Answer<'a> {
        Box::pin(async move {
            match get.path {
                "/echo" => {
                    let mut reply = Reply::text(StatusCode::OK, format!("{}|{}", get.query, get.accept));
                    reply.headers.push(("x-weight", "7".to_owned()));
                    reply
                }
                "/never" => std::future::pending().await,
                _ => Reply::not_found(),
            }
        })
    }
}

/// A server on a thread of its own, until dropped.
struct Server {
    addr: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = serve(listener, Arc::new(Echo)) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { addr: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(CONNECTION_WITHIN * 3)).unwrap();
        stream
    }

    /// What comes back for `text`, until the server closes.
    fn send(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        let mut out = Vec::new();
        // A reset after the answer is as good as an end: the server does not read what it need not.
        let _ = stream.read_to_end(&mut out);
        String::from_utf8(out).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn answers_and_refuses_properly() {
    let server = Server::start();
    let good = server.send("GET /echo?a=b HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n");
    assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
    for header in ["content-type: text/plain; charset=utf-8", "x-weight: 7", "connection: close"] {
        assert!(good.to_lowercase().contains(header), "{header}: {good}");
    }
    assert!(good.ends_with("\r\n\r\na=b|text/plain"), "{good}");
    let head = server.send("HEAD /echo?a=b HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.contains("content-length: 4\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let old = server.send("GET /echo HTTP/1.0\r\n\r\n");
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", "405"),
        ("DELETE /echo HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
        ("GET / HTTP/9.9\r\n\r\n", "400"),
        ("GET /echo HTTP/1.1\r\nbad header\r\n\r\n", "400"),
    ] {
        let answer = server.send(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
    }
    let long = server.send(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * HEAD)));
    assert!(long.starts_with("HTTP/1.1 4"), "{long}");
    assert!(server.send("POST /echo HTTP/1.1\r\nHost: x\r\n\r\n").contains("allow: GET, HEAD"));
}

/// Clients that say nothing hold nobody up, however many; and each is sent away in the end.
#[test]
fn the_slow_are_bounded() {
    let server = Server::start();
    let silent: Vec<TcpStream> = (0..MOST + 20).map(|_| server.connect()).collect();
    assert!(server.send("GET /echo HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200"));
    for mut stream in silent {
        let mut out = Vec::new();
        // An end or a reset; a timeout would say that it was kept.
        if let Err(e) = stream.read_to_end(&mut out) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}");
        }
    }
    // Neither does an answer that never comes.
    let mut stuck = server.connect();
    stuck.write_all(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(server.send("GET /echo HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200"));
}

#[test]
fn health_is_shown_as_kubernetes_does() {
    let good = Check { name: "ping", failed: None };
    let bad = Check { name: "uplink", failed: Some("eth0 is\n down".to_owned()) };
    let all = |checks: &[Check], path: &str, query: &str| {
        let reply = reply("readyz", checks, path, query);
        (reply.status.as_u16(), reply.body)
    };
    let one = [good.clone()];
    assert_eq!(all(&one, "", ""), (200, "ok".to_owned()));
    assert_eq!(all(&one, "", "verbose"), (200, "[+]ping ok\nreadyz check passed\n".to_owned()));
    let both = [good, bad];
    let failed = "[+]ping ok\n[-]uplink failed: eth0 is down\nreadyz check failed\n";
    assert_eq!(all(&both, "", ""), (503, failed.to_owned()));
    assert_eq!(all(&both, "", "verbose=true&x=y"), (503, failed.to_owned()));
    assert_eq!(all(&both, "", "exclude=uplink"), (200, "ok".to_owned()));
    let excluded = "[+]ping ok\n[+]uplink excluded: ok\nreadyz check passed\n";
    assert_eq!(all(&both, "", "verbose&exclude=uplink"), (200, excluded.to_owned()));
    let (status, body) = all(&both, "", "exclude=nonsense");
    assert!(status == 503 && body.contains("no matches for [\"nonsense\"]"), "{body}");
    assert_eq!(all(&both, "/ping", ""), (200, "ok".to_owned()));
    assert_eq!(
        all(&both, "/uplink", ""),
        (503, "[-]uplink failed: eth0 is down\nreadyz check failed\n".to_owned())
    );
    assert_eq!(all(&both, "/nonsense", "").0, 404);
}
