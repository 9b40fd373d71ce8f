//! Which UDP ports the sockets of this network namespace are bound to.
//!
//! By the kernel's tables in `/proc/net`: complete for both families in every kernel, without a module to load, and read
//! in well under a millisecond a thousand sockets.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::Error;

/// Of the calling thread's network namespace; the second is missing where IPv6 is switched off.
const TABLES: [&str; 2] = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];

/// UDP ports that sockets of the calling thread's network namespace are bound to, at whatever address, in order.
///
/// # Errors
/// [`Error::Record`] when a table cannot be read.
pub fn bound_udp() -> Result<Vec<u16>, Error> {
    let mut ports = BTreeSet::new();
    for path in TABLES {
        match std::fs::read_to_string(path) {
            Ok(text) => ports.extend(local_ports(&text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Record { what: "read", path: Path::new(path).to_owned(), source });
            }
        }
    }
    Ok(ports.into_iter().collect())
}

/// The ports of `local_address`, the second column (Documentation/networking/proc_net_tcp.rst).
fn local_ports(table: &str) -> impl Iterator<Item = u16> {
    table.lines().filter_map(|line| {
        let local = line.split_ascii_whitespace().nth(1)?;
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_both_families() {
        let v4 = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                  21: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 13 2 0 0\n\
                  99: 00000000:CA6C 0101A8C0:0035 01 00000000:00000000 00:00000000 00000000     0        0 14 2 0 0\n";
        let v6 = "  sl  local_address                         remote_address                        st tx_queue\n\
                  7: 00000000000000000000000000000000:CA6C 00000000000000000000000000000000:0000 07 00000000:0\n";
        assert_eq!(local_ports(v4).collect::<Vec<_>>(), [53, 51_820]);
        assert_eq!(local_ports(v6).collect::<Vec<_>>(), [51_820]);
        assert_eq!(local_ports("").count(), 0);
    }

    #[test]
    fn a_socket_shows_while_it_is_open() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::UdpSocket::bind(addr).unwrap();
            let port = socket.local_addr().unwrap().port();
            assert!(bound_udp().unwrap().contains(&port), "{addr}");
        }
    }
}
