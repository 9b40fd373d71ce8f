//! `punt`: after `parse`, for what is not forwarded as IP. Answers ARP requests (RFC 826) and neighbour
//! solicitations (RFC 4861 7.2.4) for the pods' gateway, and for nothing else.
//!
//! Duplicate address detection (unspecified source) is not answered. Everything else that reaches this node
//! (router solicitations, MLD, IGMP, replies to nobody) has no meaning on a pod's link and is dropped by name.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next, Node, NodeId};
use crate::packet::{Meta, proto};
use crate::snapshot::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, PortRole};
use crate::wire::{arp, eth, ndp};

/// Longest answer: Ethernet, IPv6, neighbour advertisement with one option.
const ANSWER: usize = 14 + 40 + 32;

/// The node.
#[derive(Debug, Default)]
pub struct Punt;

impl Node for Punt {
    const ID: NodeId = NodeId::Punt;

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let ingress = cx.packets.meta(i).ingress;
        let Some(port) = cx.snap.port(ingress) else { return Next::Drop(DropReason::PortGone) };
        if port.role == PortRole::Uplink {
            // The pinhole passes ARP, NDP and unknown ethertypes to the kernel: nothing to answer here.
            return Next::Drop(DropReason::UnknownEthertype);
        }
        let mut answer = [0u8; ANSWER];
        let len = match punt(cx.packets.data(i), cx.packets.meta(i), &mut answer) {
            Ok(len) => len,
            Err(reason) => return Next::Drop(reason),
        };
        let filled = match (cx.packets.frame_mut(i), answer.get(..len)) {
            (Some(frame), Some(answer)) => frame.fill(answer),
            _ => false,
        };
        if !filled {
            return Next::Drop(DropReason::NoFrame);
        }
        cx.stats.neighbor_replies.add(1);
        cx.packets.meta_mut(i).egress = ingress;
        Next::Tx
    }
}

/// Writes the answer to a frame that is not forwarded as IP; its length in bytes.
fn punt(frame: &[u8], meta: &Meta, answer: &mut [u8]) -> Result<usize, DropReason> {
    match eth::Packet::new_unchecked(frame).ethertype() {
        eth::ethertype::ARP => {
            let payload = frame.get(eth::HEADER_LEN..).unwrap_or_default();
            let request = arp::Packet::new_checked(payload).and_then(|p| arp::Repr::parse(&p));
            let request = request.map_err(|_| DropReason::MalformedArp)?;
            if request.target_ip != GATEWAY_V4 {
                return Err(DropReason::NotGateway);
            }
            let reply = request.reply(GATEWAY_MAC).ok_or(DropReason::NotGateway)?;
            reply.emit_frame(answer).ok_or(DropReason::NoFrame)
        }
        eth::ethertype::IPV6 if meta.proto == proto::ICMPV6 => {
            let solicit = ndp::Solicit::parse(frame, meta.l3, meta.l4, meta.l3_len);
            let solicit =
                solicit.map_err(|_| DropReason::MalformedTransport)?.ok_or(DropReason::Multicast)?;
            if solicit.target != GATEWAY_V6 {
                return Err(DropReason::NotGateway);
            }
            let advert = solicit.advert(GATEWAY_MAC).ok_or(DropReason::NotGateway)?;
            advert.emit_frame(answer).ok_or(DropReason::NoFrame)
        }
        eth::ethertype::IPV4 | eth::ethertype::IPV6 => Err(DropReason::Multicast),
        _ => Err(DropReason::UnknownEthertype),
    }
}
