//! The kernel's list of reserved ports, in a namespace of its own.

use std::io::Read as _;
use std::path::PathBuf;

use fastpath_control::netdev::ReservedPorts;

use crate::lab::Ns;

const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A state directory; removed when dropped.
struct State(PathBuf);

impl State {
    fn new(ns: &Ns) -> Self {
        let dir = std::env::temp_dir().join(format!("{}-state", ns.name));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn reserved_ports_are_added_and_taken_back() {
    let ns = Ns::new("reserved");
    let state = State::new(&ns);
    // The kernel answers one read only, and the standard library's first one is of 32 bytes.
    let read = || {
        let mut text = vec![0; 1 << 16];
        let len = std::fs::File::open(LIST).unwrap().read(&mut text).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap().trim_end().to_owned()
    };
    let list = || ns.within(read);
    let elsewhere = read();
    for before in [
        "",
        "8080,40100-40200",
        "7,8080,9148,10250-10260,30080,30443,31234,32000-32001,61000-61100,65000-65535",
    ] {
        ns.within(|| std::fs::write(LIST, format!("{before}\n")).unwrap());
        // A daemon that is killed, and the next one, which ends as it should.
        ns.within(|| ReservedPorts::open(&state.0).unwrap().reserve(&[(40_000, 56_383)]).unwrap());
        assert!(list().contains("40000-56383"), "{}", list());
        ns.within(|| {
            let mut ports = ReservedPorts::open(&state.0).unwrap();
            ports.reserve(&[(41_000, 42_000)]).unwrap();
            assert!(read().contains("41000-42000"));
            ports.release().unwrap();
        });
        assert_eq!(list(), before);
    }
    assert_eq!(read(), elsewhere, "only the namespace's own");
}

/// What it is for: the kernel gives none of them to a connection.
#[test]
fn the_kernel_gives_no_reserved_port_away() {
    let ns = Ns::new("reserved");
    let state = State::new(&ns);
    ns.within(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40019\n").unwrap();
        let mut ports = ReservedPorts::open(&state.0).unwrap();
        ports.reserve(&[(40_000, 40_009)]).unwrap();
        let sockets: Vec<_> = (0..5).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for socket in &sockets {
            let port = socket.local_addr().unwrap().port();
            assert!((40_010..40_020).contains(&port), "{port}");
        }
        ports.release().unwrap();
    });
}
