//! The compiled programs, and their maps made with the configured sizes.
//!
//! The only file of this crate with `unsafe`: it vouches for the layouts of `abi` towards aya.

use std::fmt;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, XskMap};
use aya::programs::{Program, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};

use crate::abi::{Config, ExactKey, Fragment, FragmentKey, SnatRange, SocketKey};
use crate::abi_traffic::{SinkCount, Template};
use crate::error::XdpError;

// SAFETY: (all of them) `repr(C)` structs of integers without padding, as the size assertions beside
// their definitions prove, so every byte is initialised and every bit pattern is valid.
unsafe impl Pod for SocketKey {}
// SAFETY: as above.
unsafe impl Pod for ExactKey {}
// SAFETY: as above.
unsafe impl Pod for SnatRange {}
// SAFETY: as above.
unsafe impl Pod for Config {}
// SAFETY: as above.
unsafe impl Pod for FragmentKey {}
// SAFETY: as above.
unsafe impl Pod for Fragment {}
// SAFETY: as above.
unsafe impl Pod for Template {}
// SAFETY: as above.
unsafe impl Pod for SinkCount {}

static REDIRECT: &[u8] = aya::include_bytes_aligned!("../obj/redirect.o");
static OUTBOX: &[u8] = aya::include_bytes_aligned!("../obj/outbox.o");
static TRAFFIC: &[u8] = aya::include_bytes_aligned!("../obj/traffic.o");

/// Sizes of the maps whose size is configured, in entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) sockets: u32,
    pub(crate) local_prefixes: u32,
    pub(crate) exact: u32,
    pub(crate) snat: u32,
}

/// The redirect object: both programs loaded, none attached, and their maps.
pub(crate) struct RedirectObject {
    pub(crate) ebpf: Ebpf,
    pub(crate) config: Array<MapData, Config>,
    pub(crate) heartbeat: Option<Array<MapData, u64>>,
    pub(crate) slots: HashMap<MapData, SocketKey, u32>,
    pub(crate) sockets: XskMap<MapData>,
    pub(crate) local4: LpmTrie<MapData, [u8; 4], u32>,
    pub(crate) local6: LpmTrie<MapData, [u8; 16], u32>,
    pub(crate) exact: HashMap<MapData, ExactKey, u32>,
    pub(crate) snat: HashMap<MapData, [u8; 16], SnatRange>,
    pub(crate) fragments: HashMap<MapData, FragmentKey, Fragment>,
    pub(crate) counters: PerCpuArray<MapData, [u64; 16]>,
}

impl RedirectObject {
    pub(crate) fn load(sizes: Sizes) -> Result<Self, XdpError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("SLOTS", sizes.sockets)
            .map_max_entries("SOCKETS", sizes.sockets)
            .map_max_entries("LOCAL4", sizes.local_prefixes)
            .map_max_entries("LOCAL6", sizes.local_prefixes)
            .map_max_entries("EXACT", sizes.exact)
            .map_max_entries("SNAT", sizes.snat)
            .load(REDIRECT)
            .map_err(|error| XdpError::Load(Box::new(error)))?;
        load_program(&mut ebpf, "endpoint")?;
        load_program(&mut ebpf, "uplink")?;
        Ok(Self {
            config: take(&mut ebpf, "CONFIG")?,
            heartbeat: Some(take(&mut ebpf, "HEARTBEAT")?),
            slots: take(&mut ebpf, "SLOTS")?,
            sockets: take(&mut ebpf, "SOCKETS")?,
            local4: take(&mut ebpf, "LOCAL4")?,
            local6: take(&mut ebpf, "LOCAL6")?,
            exact: take(&mut ebpf, "EXACT")?,
            snat: take(&mut ebpf, "SNAT")?,
            fragments: take(&mut ebpf, "FRAGMENTS")?,
            counters: take(&mut ebpf, "COUNTERS")?,
            ebpf,
        })
    }
}

impl fmt::Debug for RedirectObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The maps have nothing to show.
        f.debug_struct("RedirectObject").field("ebpf", &self.ebpf).finish_non_exhaustive()
    }
}

/// The traffic object: both programs loaded, none attached, and their maps.
pub(crate) struct TrafficObject {
    pub(crate) ebpf: Ebpf,
    pub(crate) template: Array<MapData, Template>,
    pub(crate) sink: PerCpuArray<MapData, SinkCount>,
}

impl TrafficObject {
    pub(crate) fn load() -> Result<Self, XdpError> {
        let mut ebpf = EbpfLoader::new().load(TRAFFIC).map_err(|error| XdpError::Load(Box::new(error)))?;
        load_program(&mut ebpf, "generate")?;
        load_program(&mut ebpf, "count")?;
        Ok(Self { template: take(&mut ebpf, "TEMPLATE")?, sink: take(&mut ebpf, "SINK")?, ebpf })
    }
}

/// The sending object: its program loaded, attached nowhere, and its map.
pub(crate) struct OutboxObject {
    pub(crate) ebpf: Ebpf,
    pub(crate) memory: MapData,
}

impl OutboxObject {
    pub(crate) fn load() -> Result<Self, XdpError> {
        let mut ebpf = EbpfLoader::new().load(OUTBOX).map_err(|error| XdpError::Load(Box::new(error)))?;
        load_program(&mut ebpf, "send")?;
        match ebpf.take_map("OUTBOX") {
            Some(Map::Array(memory)) => Ok(Self { ebpf, memory }),
            _ => Err(XdpError::Missing { kind: "map", name: "OUTBOX" }),
        }
    }
}

impl fmt::Debug for OutboxObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxObject").field("ebpf", &self.ebpf).finish_non_exhaustive()
    }
}

/// Puts the calling thread into a new network namespace.
pub(crate) fn leave_namespace() -> std::io::Result<()> {
    // SAFETY: only the network namespace changes; the thread goes on sharing memory, files and the rest.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// The XDP program `name` of the object.
pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, XdpError> {
    match ebpf.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(XdpError::Missing { kind: "program", name }),
    }
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), XdpError> {
    program(ebpf, name)?.load().map_err(|error| XdpError::Program { program: name, source: Box::new(error) })
}

fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, XdpError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(XdpError::Missing { kind: "map", name })?;
    M::try_from(map).map_err(XdpError::map("open a map of the XDP object"))
}

impl fmt::Debug for TrafficObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficObject").field("ebpf", &self.ebpf).finish_non_exhaustive()
    }
}
