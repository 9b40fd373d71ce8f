//! Routing rules (`ip rule`): which table is asked for which packets, in which order.
#![forbid(unsafe_code)]

use super::wire::{
    AF_INET, AF_INET6, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, RTM_DELRULE, RTM_GETRULE,
    RTM_NEWRULE, Request, attrs_after, u16_at,
};
use super::{Error, Netlink};

// linux/fib_rules.h
const FRA_DST: u16 = 1;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_DPORT_MASK: u16 = 29;
const FR_ACT_TO_TBL: u8 = 1;
/// "No suppression", as the kernel reports it.
const NO_SUPPRESSION: u32 = u32::MAX;
/// Length of `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;

/// A rule that sends packets to a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// IPv4, or IPv6.
    pub ipv4: bool,
    /// Preference: the least is asked first.
    pub pref: u32,
    /// Table it sends to.
    pub table: u32,
    /// Only packets from this device; `lo` are those made here.
    pub iif: Option<String>,
    /// Only this IP protocol, to ports from the first to the last.
    pub ports: Option<(u8, u16, u16)>,
    /// Who made it (`FRA_PROTOCOL`).
    pub protocol: u8,
    /// It asks for something else besides, or sends to no table: never one of ours.
    pub more: bool,
}

impl Rule {
    /// For all packets of a family.
    #[must_use]
    pub fn all(ipv4: bool, pref: u32, table: u32, protocol: u8) -> Self {
        Self { ipv4, pref, table, iif: None, ports: None, protocol, more: false }
    }

    /// Whether it sends every packet of its family to `table`.
    #[must_use]
    pub fn is_all_to(&self, table: u32) -> bool {
        self.table == table && self.iif.is_none() && self.ports.is_none() && !self.more
    }

    fn family(&self) -> u8 {
        if self.ipv4 { AF_INET } else { AF_INET6 }
    }

    fn request(&self, kind: u16, flags: u16) -> Request {
        // Numbers above 255 stand in the attribute alone (RT_TABLE_UNSPEC here).
        let short = u8::try_from(self.table).unwrap_or(0);
        let header = [self.family(), 0, 0, 0, short, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        let mut request = Request::new(kind, flags | NLM_F_ACK, &header);
        request.u32(FRA_PRIORITY, self.pref).u32(FRA_TABLE, self.table).attr(FRA_PROTOCOL, &[self.protocol]);
        if let Some(device) = &self.iif {
            request.attr(FRA_IIFNAME, &[device.as_bytes(), &[0]].concat());
        }
        if let Some((proto, first, last)) = self.ports {
            let range = [first.to_ne_bytes(), last.to_ne_bytes()].concat();
            request.attr(FRA_IP_PROTO, &[proto]).attr(FRA_DPORT_RANGE, &range);
        }
        request
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}:", if self.ipv4 { "" } else { "-6 " }, self.pref)?;
        if let Some(device) = &self.iif {
            write!(f, " iif {device}")?;
        }
        if let Some((proto, first, last)) = self.ports {
            write!(f, " ipproto {proto} dport {first}-{last}")?;
        }
        if self.more {
            write!(f, " ...")?;
        }
        if self.table == 0 { Ok(()) } else { write!(f, " lookup {}", self.table) }
    }
}

impl Netlink {
    /// The rules of both families, in their order.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        let mut out = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let request =
                || Request::new(RTM_GETRULE, NLM_F_DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let each = |m: Message<'_>| (m.kind == RTM_NEWRULE).then(|| rule(m.payload)).flatten();
            match self.dump("list the routing rules", request, each) {
                Ok(rules) => out.extend(rules),
                // A kernel without IPv6, or without rules for it.
                Err(e)
                    if family == AF_INET6
                        && matches!(e.errno(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EOPNOTSUPP)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Adds a rule; one that is there already stays.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let request = rule.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL);
        match self.call(|| format!("add the routing rule '{rule}'"), request, |_| {}) {
            Err(e) if e.errno() == Some(nix::libc::EEXIST) => Ok(()),
            done => done,
        }
    }

    /// Removes a rule that is there; one that is not is no error.
    ///
    /// Preference 0 is to the kernel any preference: of such a rule only the first can be removed.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn remove_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let request = rule.request(RTM_DELRULE, 0);
        match self.call(|| format!("remove the routing rule '{rule}'"), request, |_| {}) {
            Err(e) if e.errno() == Some(nix::libc::ENOENT) => Ok(()),
            done => done,
        }
    }
}

/// A rule from `struct fib_rule_hdr` and its attributes.
fn rule(payload: &[u8]) -> Option<Rule> {
    let [family, dst_len, src_len, tos, table, _, _, action, flags @ ..] =
        payload.first_chunk::<RULE_HEADER>()?;
    if !matches!(*family, AF_INET | AF_INET6) {
        return None;
    }
    let mut out = Rule::all(*family == AF_INET, 0, u32::from(*table), 0);
    // FIB_RULE_INVERT, and whatever is not a state of the device named.
    out.more = *action != FR_ACT_TO_TBL
        || *dst_len != 0
        || *src_len != 0
        || *tos != 0
        || u32::from_ne_bytes(*flags) & 2 != 0;
    let (mut proto, mut range) = (None, None);
    for a in attrs_after(payload, RULE_HEADER) {
        match a.kind {
            FRA_PRIORITY => out.pref = a.u32().unwrap_or(0),
            FRA_TABLE => out.table = a.u32().unwrap_or(out.table),
            FRA_PROTOCOL => out.protocol = a.u8().unwrap_or(0),
            FRA_IIFNAME => out.iif = Some(a.string()),
            FRA_IP_PROTO => proto = a.u8(),
            FRA_DPORT_RANGE => range = u16_at(a.value, 0).zip(u16_at(a.value, 2)),
            FRA_SUPPRESS_PREFIXLEN if a.u32() == Some(NO_SUPPRESSION) => {}
            // Since Linux 6.15 a single port has all bits of its mask.
            FRA_DPORT_MASK if u16_at(a.value, 0) == Some(u16::MAX) => {}
            FRA_DST | FRA_SUPPRESS_PREFIXLEN => out.more = true,
            // Goto, marks, realms, other devices and ports; what only says so with zeros is none.
            _ => out.more |= a.value.iter().any(|b| *b != 0),
        }
    }
    match (proto, range) {
        (Some(proto), Some((first, last))) => out.ports = Some((proto, first, last)),
        (None, None) => {}
        _ => out.more = true,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netdev::wire::messages;

    fn some_rule() -> impl Strategy<Value = Rule> {
        let ports = proptest::option::of((1u8..=255, any::<u16>(), any::<u16>()));
        (any::<bool>(), any::<u32>(), 1u32.., proptest::option::of("[a-z]{1,8}"), ports, any::<u8>())
            .prop_map(|(ipv4, pref, table, iif, ports, protocol)| Rule {
                iif,
                ports,
                ..Rule::all(ipv4, pref, table, protocol)
            })
    }

    proptest! {
        /// What is asked for is what is read.
        #[test]
        fn a_rule_reads_back(wanted in some_rule()) {
            let bytes = wanted.request(RTM_NEWRULE, 0).finish(1).to_vec();
            let [m] = messages(&bytes).collect::<Vec<_>>().try_into().unwrap();
            prop_assert_eq!(rule(m.payload), Some(wanted));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            let _ = rule(&bytes);
        }
    }

    #[test]
    fn the_kernels_own_are_recognised() {
        let mut kernels = Netlink::route().unwrap();
        let rules = kernels.rules().unwrap();
        let main = rules.iter().find(|r| r.ipv4 && r.pref == 32_766);
        assert!(main.is_some_and(|r| r.is_all_to(254)), "{rules:?}");
    }
}
