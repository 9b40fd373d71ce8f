//! Network namespaces, veths, raw packets and a minimal XDP program, for the tests that use real sockets.
//!
//! Needs root. Everything lives in a namespace of the test's thread and is gone when the thread ends.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

/// IEEE 802 local experimental EtherType 1: nothing else on a test wire has it.
pub const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Runs `test` on a thread of its own, in a fresh network namespace.
pub fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let thread = std::thread::Builder::new().name("netns".into()).spawn(|| {
        // SAFETY: only this thread's network namespace changes.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        // Without router solicitations and the like, only what the test sends is on the wire.
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        test()
    });
    match thread.unwrap().join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `program` with the words of `args`.
pub fn run(program: &str, args: &str) {
    let output = Command::new(program).args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `ip` with the words of `args`.
pub fn ip(args: &str) {
    run("ip", args);
}

/// A veth pair, both ends up, each with `queues` queues.
pub fn veth(a: &str, b: &str, queues: u32) {
    let q = format!("numtxqueues {queues} numrxqueues {queues}");
    ip(&format!("link add {a} {q} type veth peer name {b} {q}"));
    ip(&format!("link set {a} up"));
    ip(&format!("link set {b} up"));
    let start = Instant::now();
    while fs::read_to_string(format!("/sys/class/net/{a}/carrier")).is_ok_and(|c| c.trim() != "1") {
        assert!(start.elapsed() < Duration::from_secs(5), "{a} has no carrier");
        std::thread::yield_now();
    }
}

pub fn ifindex(name: &str) -> u32 {
    let name = CString::new(name).unwrap();
    // SAFETY: a valid C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no device {name:?}");
    index
}

/// A packet socket on one device that sends and receives whole frames.
pub struct Raw(OwnedFd);

impl Raw {
    pub fn open(ifname: &str) -> Self {
        // SAFETY: plain system calls; the new fd is owned by nobody else.
        unsafe {
            let protocol = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let mut addr: libc::sockaddr_ll = core::mem::zeroed();
            addr.sll_family = libc::AF_PACKET as u16;
            addr.sll_protocol = protocol as u16;
            addr.sll_ifindex = ifindex(ifname) as i32;
            let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            assert_eq!(
                libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len),
                0,
                "{}",
                io::Error::last_os_error()
            );
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, 64 << 20).unwrap();
            Self(fd)
        }
    }

    /// Sends a frame; `false` when the device does not take it.
    pub fn try_send(&self, frame: &[u8]) -> bool {
        rustix::net::send(&self.0, frame, rustix::net::SendFlags::empty()).is_ok()
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::net::send(&self.0, frame, rustix::net::SendFlags::empty()).unwrap(), frame.len());
    }

    /// The next received frame of [`ETHERTYPE`], not one sent from here.
    pub fn recv(&self) -> Option<Vec<u8>> {
        let mut buf = vec![0u8; 4096];
        loop {
            // SAFETY: the address is plain data.
            let mut from: libc::sockaddr_ll = unsafe { core::mem::zeroed() };
            let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: buffer and address are as long as said.
            let n = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    buf.as_mut_ptr().cast(),
                    buf.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut len,
                )
            };
            let n = usize::try_from(n).ok()?;
            if from.sll_pkttype != libc::PACKET_OUTGOING && buf[12..14] == ETHERTYPE {
                buf.truncate(n);
                return Some(buf);
            }
        }
    }
}

/// A frame of `len` bytes that carries a number and bytes that depend on it.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    frame.extend(ETHERTYPE);
    frame.extend(number.to_be_bytes());
    frame.extend((0u8..=255).cycle().map(|i| i.wrapping_mul(31) ^ number.to_le_bytes()[0]).take(len - 18));
    frame
}

/// The number in a frame, if it is one of [`frame`]'s, whole and unchanged.
pub fn number(bytes: &[u8]) -> Option<u32> {
    let number = u32::from_be_bytes(bytes.get(14..18)?.try_into().ok()?);
    (frame(number, bytes.len()) == bytes).then_some(number)
}

/// A map of sockets and a program that redirects every frame to the socket of its queue, attached to one device.
pub struct Redirect {
    map: OwnedFd,
    _link: OwnedFd,
}

/// `bpf(2)`; `attr` begins with the words of the command's part of `union bpf_attr`.
fn bpf(command: libc::c_long, attr: &[u64]) -> OwnedFd {
    // SAFETY: `attr` is as long as said, and the pointers in it live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    assert!(fd >= 0, "bpf command {command}: {}", io::Error::last_os_error());
    // SAFETY: these commands return a new fd.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl Redirect {
    /// Loads the program and attaches it in native mode.
    pub fn attach(ifname: &str) -> Self {
        const MAP_CREATE: libc::c_long = 0;
        const PROG_LOAD: libc::c_long = 5;
        const LINK_CREATE: libc::c_long = 28;
        const XSKMAP: u32 = 17;
        const PROG_XDP: u32 = 6;
        const ATTACH_XDP: u32 = 37;
        const XDP_FLAGS_DRV_MODE: u32 = 4;
        let map = bpf(MAP_CREATE, &[pair(XSKMAP, 4), pair(4, 64), 0]);
        let insn = |code: u32, regs: u32, off: u32, imm: u32| pair(code | regs << 8 | off << 16, imm);
        let map_fd = u32::try_from(map.as_raw_fd()).unwrap();
        let program = [
            insn(0x61, 0x12, 16, 0),     // r2 = *(u32 *)(r1 + 16): xdp_md.rx_queue_index
            insn(0x18, 0x11, 0, map_fd), // r1 = map
            insn(0, 0, 0, 0),            //
            insn(0xb7, 0x03, 0, 2),      // r3 = XDP_PASS, when the slot is empty
            insn(0x85, 0, 0, 51),        // call bpf_redirect_map
            insn(0x95, 0, 0, 0),         // exit
        ];
        let program = bpf(PROG_LOAD, &[pair(PROG_XDP, 6), program.as_ptr() as u64, c"GPL".as_ptr() as u64]);
        let program_fd = u32::try_from(program.as_raw_fd()).unwrap();
        let link =
            bpf(LINK_CREATE, &[pair(program_fd, ifindex(ifname)), pair(ATTACH_XDP, XDP_FLAGS_DRV_MODE)]);
        Self { map, _link: link }
    }

    /// Sends the frames of `queue` to `socket`.
    pub fn insert(&self, queue: u32, socket: BorrowedFd<'_>) {
        let fd = u32::try_from(socket.as_raw_fd()).unwrap();
        assert_eq!(self.element(2, &queue, &fd), 0, "{}", io::Error::last_os_error());
    }

    /// Lets the frames of `queue` pass to the kernel again.
    pub fn remove(&self, queue: u32) {
        self.element(3, &queue, &0);
    }

    fn element(&self, command: libc::c_long, key: &u32, value: &u32) -> libc::c_long {
        let map = u64::try_from(self.map.as_raw_fd()).unwrap();
        let attr = [map, core::ptr::from_ref(key) as u64, core::ptr::from_ref(value) as u64, 0];
        // SAFETY: key and value are four bytes each, as the map was made with.
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(&attr)) }
    }
}
