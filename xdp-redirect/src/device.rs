//! What the kernel says of a device: name, MTU, attached XDP program and its mode (rtnetlink).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::attach::Mode;
use crate::error::XdpError;

/// A device of the calling thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The XDP program attached to it, with the mode it runs in.
    pub program: Option<(u32, Mode)>,
}

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const ENODEV: i32 = 19;
/// Netlink header, then `struct ifinfomsg`.
const HEADER: usize = 16;
const IFINFO: usize = 16;

/// The device `ifindex`, `None` when there is none.
///
/// # Errors
/// [`XdpError::Netlink`] when the routing socket fails or answers nonsense.
pub fn query(ifindex: u32) -> Result<Option<Device>, XdpError> {
    ask(ifindex).map_err(|source| XdpError::Netlink { ifindex, source })
}

fn ask(ifindex: u32) -> io::Result<Option<Device>> {
    // Protocol 0, `None`, is NETLINK_ROUTE.
    let socket: OwnedFd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut request = [0u8; HEADER + IFINFO];
    request[0..4].copy_from_slice(&32u32.to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[8..12].copy_from_slice(&1u32.to_ne_bytes());
    request[HEADER + 4..HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    // A device with many virtual functions fills some 30 kB.
    let mut answer = vec![0u8; 128 * 1024];
    let (_, length) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    parse(answer.get(..length).unwrap_or(&answer))
}

fn parse(answer: &[u8]) -> io::Result<Option<Device>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "cut netlink message");
    match u16_at(answer, 4).ok_or_else(short)? {
        NLMSG_ERROR => {
            let errno = u32_at(answer, HEADER).ok_or_else(short)?.cast_signed().wrapping_neg();
            if errno == ENODEV { Ok(None) } else { Err(io::Error::from_raw_os_error(errno)) }
        }
        RTM_NEWLINK => {
            let mut device = Device { name: String::new(), mtu: 0, program: None };
            for (kind, value) in Attributes(answer.get(HEADER + IFINFO..).ok_or_else(short)?) {
                match kind {
                    IFLA_IFNAME => {
                        let name = value.strip_suffix(&[0]).unwrap_or(value);
                        device.name = String::from_utf8_lossy(name).into_owned();
                    }
                    IFLA_MTU => device.mtu = u32_at(value, 0).ok_or_else(short)?,
                    IFLA_XDP => {
                        device.program = Attributes(value).find_map(|(kind, value)| {
                            let mode = match kind {
                                // Offloaded counts as native: not generic, and not to be replaced.
                                IFLA_XDP_DRV_PROG_ID | IFLA_XDP_HW_PROG_ID => Mode::Native,
                                IFLA_XDP_SKB_PROG_ID => Mode::Generic,
                                _ => return None,
                            };
                            Some((u32_at(value, 0)?, mode))
                        });
                    }
                    _ => {}
                }
            }
            Ok(Some(device))
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("netlink message of type {other}"))),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Route attributes: length, type, value, padded to four bytes. Ends at the first cut one.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        // The two top bits say "nested" and "network order".
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn answer(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; HEADER];
        out[4..6].copy_from_slice(&kind.to_ne_bytes());
        out.extend(body);
        out
    }

    fn link(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0u8; IFINFO];
        body.extend(attributes.concat());
        answer(RTM_NEWLINK, &body)
    }

    #[test]
    fn reads_name_mtu_and_program() {
        let xdp =
            [attribute(2, &[2]), attribute(4, &77u32.to_ne_bytes()), attribute(6, &77u32.to_ne_bytes())];
        let message = link(&[
            attribute(IFLA_IFNAME, b"eth0\0"),
            attribute(IFLA_MTU, &1450u32.to_ne_bytes()),
            attribute(IFLA_XDP | 0x8000, &xdp.concat()),
        ]);
        assert_eq!(
            parse(&message).unwrap(),
            Some(Device { name: "eth0".into(), mtu: 1450, program: Some((77, Mode::Generic)) })
        );
    }

    #[test]
    fn no_program_is_none_and_no_device_is_none() {
        let message = link(&[attribute(IFLA_IFNAME, b"a\0"), attribute(IFLA_XDP, &attribute(2, &[0]))]);
        assert_eq!(parse(&message).unwrap().unwrap().program, None);
        assert_eq!(parse(&answer(NLMSG_ERROR, &(-19i32).to_ne_bytes())).unwrap(), None);
        assert_eq!(
            parse(&answer(NLMSG_ERROR, &(-1i32).to_ne_bytes())).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn loopback_is_there() {
        let lo = query(1).unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.program), ("lo", None));
        assert_eq!(query(u32::MAX >> 2).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&link(&[bytes]));
        }
    }
}
