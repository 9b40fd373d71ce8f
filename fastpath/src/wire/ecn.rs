//! DSCP and ECN across a tunnel (RFC 6040, RFC 2983).
//!
//! The DSCP is copied outwards and the inner one kept inwards (RFC 2983's pipe model on the way out): what an
//! underlay remarks does not reach pods.
#![forbid(unsafe_code)]

/// The ECN bits of a TOS or traffic class byte.
pub const MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub const ECT1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The outer TOS of an inner one: RFC 6040 4.1, normal mode, copies ECN as it is; so is the DSCP.
#[inline]
#[must_use]
pub fn encap(inner: u8) -> u8 {
    inner
}

/// The inner TOS after decapsulation: RFC 6040 4.2 figure 4, the inner DSCP kept.
///
/// `None`: congestion was marked on a packet whose sender does not look at marks, so it has to be dropped.
#[inline]
#[must_use]
pub fn decap(outer: u8, inner: u8) -> Option<u8> {
    let ecn = match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (CE, _) | (_, CE) => CE,
        (_, ECT1) | (ECT1, _) => ECT1,
        _ => ECT0,
    };
    Some(inner & !MASK | ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_6040_figure_4() {
        // Rows: arriving inner header; columns: arriving outer header, in the order of the figure.
        let outer = [NOT_ECT, ECT0, ECT1, CE];
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT0, [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)]),
            (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, want) in outer.into_iter().zip(row) {
                assert_eq!(decap(outer, inner), want, "inner {inner:02b} outer {outer:02b}");
                // DSCPs: the inner one stays, the outer one is dropped.
                assert_eq!(decap(0xfc | outer, 0xb8 | inner), want.map(|e| 0xb8 | e));
            }
        }
    }

    #[test]
    fn nothing_is_lost_on_an_uncongested_way() {
        for tos in 0..=255 {
            assert_eq!(decap(encap(tos), tos), Some(tos));
        }
    }
}
