//! Every reason a packet can be dropped for, in one enum: labels, help and documentation derive from it.

macro_rules! drop_reasons {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $help])+ $variant,)+ }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The label used by `show drops`, traces and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// What it means and what to look at.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($help,)+).trim_ascii(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// Frame ends inside its Ethernet header.
    MalformedEthernet = "malformed_ethernet",
    /// ARP packet of wrong length or with wrong type fields.
    MalformedArp = "malformed_arp",
    /// IPv4 header cut short, with a wrong length, version or header checksum.
    MalformedIpv4 = "malformed_ipv4",
    /// IPv6 header or extension header cut short or with a wrong length.
    MalformedIpv6 = "malformed_ipv6",
    /// TCP, UDP, SCTP, ICMP or ICMPv6 header cut short or with a wrong length.
    MalformedTransport = "malformed_transport",
    /// VXLAN header cut short or without the I flag.
    MalformedVxlan = "malformed_vxlan",
    /// Neither IPv4, IPv6 nor ARP.
    UnknownEthertype = "unknown_ethertype",
    /// Destination MAC address is not the gateway's (from a pod) or the port's (from the uplink).
    WrongMac = "wrong_mac",
    /// Multicast or broadcast destination: not forwarded.
    Multicast = "multicast",
    /// Source or destination address that may not be on the wire (unspecified, loopback, IPv4-mapped, multicast source, link-local routed).
    MartianAddress = "martian_address",
    /// A pod sent from an address that is not its own.
    SourceNotOwn = "source_not_own",
    /// The uplink brought a packet from an address of this node or of a pod on it.
    SourceIsLocal = "source_is_local",
    /// The uplink brought it another way than its source is reached: a pod behind a tunnel sends through its tunnel.
    SourceWrongWay = "source_wrong_way",
    /// ARP request or neighbour solicitation for something other than the gateway.
    NotGateway = "not_gateway",
    /// VXLAN packet from an address that is no known VTEP.
    UnknownVtep = "unknown_vtep",
    /// VXLAN packet with another VNI.
    WrongVni = "wrong_vni",
    /// The outer header says congestion was met but the inner sender does not know ECN (RFC 6040).
    CongestionExperienced = "congestion_experienced",
    /// Arrived by the tunnel but its destination is neither a pod of this node nor the node.
    TunnelNotLocal = "tunnel_not_local",
    /// No route to the destination (the sender gets an ICMP unreachable).
    NoRoute = "no_route",
    /// Destination is inside this node's pod CIDR but no pod has it (the sender gets an ICMP unreachable).
    NoEndpoint = "no_endpoint",
    /// For the node itself, and there is no host port to hand it to (`host.enabled`).
    HostUnreachable = "host_unreachable",
    /// TTL or hop limit reached zero (the sender gets an ICMP time exceeded).
    TtlExceeded = "ttl_exceeded",
    /// Larger than the MTU of its way out (the sender gets an ICMP too big).
    MtuExceeded = "mtu_exceeded",
    /// The MAC address of the next hop is not known yet.
    NeighborUnresolved = "neighbor_unresolved",
    /// ICMP error that quotes no known flow.
    IcmpUnrelated = "icmp_unrelated",
    /// An ICMP error was due but the rate limit held it back.
    IcmpRateLimited = "icmp_rate_limited",
    /// TCP segment in the middle of a connection that has no flow, with `tcp_pickup = "deny"`.
    TcpNoFlow = "tcp_no_flow",
    /// The policies of the pod that sent it allow no such connection; `show policies` says which.
    PolicyDeniedEgress = "policy_denied_egress",
    /// The policies of the pod it is for allow no such connection; `show policies` says which.
    PolicyDeniedIngress = "policy_denied_ingress",
    /// For a service without a usable backend (the sender gets a reset or ICMP port unreachable).
    NoBackend = "no_backend",
    /// From outside for a service with `externalTrafficPolicy: Local` that has no backend on this node.
    NoLocalBackend = "no_local_backend",
    /// From a client that is not in the service's `loadBalancerSourceRanges`.
    SourceRangeDenied = "source_range_denied",
    /// For a service's cluster address, but none of its ports (the sender gets a reset or ICMP port unreachable).
    ServicePortUnknown = "service_port_unknown",
    /// Of a flow whose backend is gone (TCP: the sender gets a reset).
    BackendGone = "backend_gone",
    /// No port is left that its source could be translated to, for this destination; widen `snat.port_range`.
    SnatExhausted = "snat_exhausted",
    /// Its source would have to be translated but the node has no address of the family.
    SnatNoAddress = "snat_no_address",
    /// Its source would have to be translated but its protocol has neither ports nor an identifier.
    SnatProtocol = "snat_protocol",
    /// For a translated source whose flow is no longer known.
    NatNoFlow = "nat_no_flow",
    /// Fragment whose first fragment was not seen in time, or was not let through.
    FragmentUnmatched = "fragment_unmatched",
    /// Fragment that overlaps another one of its datagram, or comes after such a one (RFC 5722).
    FragmentOverlap = "fragment_overlap",
    /// Fragment that was there already.
    FragmentDuplicate = "fragment_duplicate",
    /// More fragments out of order than are held, or too many in one datagram.
    FragmentLimit = "fragment_limit",
    /// Fragment of an SCTP packet whose ports must be translated: its checksum is over the whole packet.
    SctpFragment = "sctp_fragment",
    /// VXLAN packet in fragments: the MTU between the nodes is smaller than configured.
    TunnelFragment = "tunnel_fragment",
    /// ICMP "too big" about a tunnel packet that quotes too little to tell whose packet was inside.
    TunnelErrorShort = "tunnel_error_short",
    /// No free slot in the flow table and nothing that may be evicted.
    FlowTableFull = "flow_table_full",
    /// Another worker was changing its flow at that very moment; the sender's next attempt is decided.
    FlowBusy = "flow_busy",
    /// Not enough headroom in the frame for the outer header.
    NoHeadroom = "no_headroom",
    /// The port it should leave by was removed.
    PortGone = "port_gone",
    /// The device it should leave by is down or gone.
    LinkDown = "link_down",
    /// The tx ring of the port stayed full.
    TxRingFull = "tx_ring_full",
    /// A pod's end of its veth did not take it: its ring was full, as it receives too slowly. Counted by the kernel, which
    /// counts what others send there too (`tx_dropped` of the device); `show ports` says where.
    ReceiverFull = "receiver_full",
    /// The kernel refused the call that sends packets to several devices together.
    CallFailed = "call_failed",
    /// The queue to the worker that owns the port was full.
    HandoffFull = "handoff_full",
    /// No free frame to receive into or to answer with.
    NoFrame = "no_frame",
    /// No snapshot yet: the control thread has not finished its first sync.
    NotReady = "not_ready",
}

impl core::fmt::Display for DropReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_helped() {
        let names: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (i, r) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
            assert!(r.help().ends_with('.') || r.help().ends_with(')'), "{r}: {}", r.help());
        }
    }
}
