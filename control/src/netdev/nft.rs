//! The chains of the kernel's packet filter (nf_tables): whose rules there are, as those of kube-proxy.
//!
//! Layout: `linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`. `iptables-nft` makes its chains here too;
//! those of `iptables-legacy` are elsewhere.
#![forbid(unsafe_code)]

use super::wire::{NLM_F_DUMP, Request, attrs_after};
use super::{Error, Netlink};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`.
const GETCHAIN: u16 = 10 << 8 | 4;
/// `struct nfgenmsg`: any family, version 0, no resource.
const HEADER: [u8; 4] = [0; 4];
const A_TABLE: u16 = 1;
const A_NAME: u16 = 3;

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
}

/// The chains of the calling thread's network namespace, without doubles over the families.
///
/// # Errors
/// [`Error::Socket`], [`Error::Kernel`]: also when the kernel has no nf_tables.
pub fn chains() -> Result<Vec<Chain>, Error> {
    let mut netlink = Netlink::netfilter()?;
    let make = || Request::new(GETCHAIN, NLM_F_DUMP, &HEADER);
    let mut chains = netlink.dump("list the chains of nf_tables", make, |m| {
        let find = |kind| attrs_after(m.payload, HEADER.len()).find(|a| a.kind == kind);
        Some(Chain { table: find(A_TABLE)?.string(), name: find(A_NAME)?.string() })
    })?;
    chains.sort();
    chains.dedup();
    Ok(chains)
}
