//! The packets of one vector: frames and what the nodes know of each, in parallel arrays.
#![forbid(unsafe_code)]

use crate::io::Frame;
use crate::packet::{FlowKey, Meta, PortId};
use crate::tables::flow::{FlowRef, Transform};
use crate::tables::policy::Rules;
use crate::wire::icmp::ErrorKind;

/// Most packets in one vector.
pub const VECTOR: usize = 256;

/// What the source of a flow becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Itself.
    Keep,
    /// Its own address, on a port of the reserved range, which no other connection of the node has.
    Port,
    /// This node's address, on a port of the reserved range: replies come back here.
    Node,
    /// The pods' gateway: a pod that reaches itself through a service must see a stranger.
    Gateway,
}

/// What the sender of a dropped packet is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An ICMP error.
    Error(ErrorKind),
    /// What a closed port answers: a reset to TCP, this ICMP error to other protocols.
    Refuse(ErrorKind),
}

/// What the slow path knows of a packet's flow before it is installed.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The flow as its first packet had it.
    pub original: FlowKey,
    /// The flow after translation: what the destination sees.
    pub translated: FlowKey,
    /// An existing flow of an older generation that is decided again.
    pub stale: Option<FlowRef>,
    /// A flow whose key this new one has: it ends when this one is installed, and not before.
    pub replaces: Option<FlowRef>,
    /// The packet at hand goes in the reply direction of `original`.
    pub reply: bool,
    /// What the source becomes.
    pub source: Source,
    /// The policy rules that allow it.
    pub rules: Rules,
    /// What to answer, when the packet is on its way to `icmp`.
    pub answer: Option<Answer>,
}

impl Setup {
    /// A flow that begins with this packet.
    #[must_use]
    pub const fn first(key: FlowKey) -> Self {
        Self {
            original: key,
            translated: key,
            stale: None,
            replaces: None,
            reply: false,
            source: Source::Keep,
            rules: Rules::NONE,
            answer: None,
        }
    }
}

/// The packets of one vector.
///
/// Packets are named by their number in the vector. Numbers come from this type alone and the arrays
/// have a power-of-two length, so that every access is in bounds by a mask.
#[derive(Debug)]
pub struct Packets {
    /// One place in memory for all: one pointer leads to every packet's parts.
    all: Box<Arrays>,
    len: u16,
}

#[derive(Debug)]
struct Arrays {
    frames: [Option<Frame>; VECTOR],
    meta: [Meta; VECTOR],
    key: [FlowKey; VECTOR],
    transform: [Transform; VECTOR],
    setup: [Setup; VECTOR],
}

impl Default for Packets {
    fn default() -> Self {
        let all = Arrays {
            frames: [const { None }; VECTOR],
            meta: [Meta::default(); VECTOR],
            key: [FlowKey::EMPTY; VECTOR],
            transform: [Transform::identity(&FlowKey::EMPTY); VECTOR],
            setup: [Setup::first(FlowKey::EMPTY); VECTOR],
        };
        Self { all: Box::new(all), len: 0 }
    }
}

/// Parts of all packets, each by number; see [`Packets::lookup`].
#[derive(Debug)]
pub struct Lookup<'a> {
    /// Flow keys of the vector's packets.
    pub keys: &'a [FlowKey],
    /// Frames.
    pub frames: &'a mut [Option<Frame>; VECTOR],
    /// Metadata.
    pub meta: &'a mut [Meta; VECTOR],
    /// What `rewrite` will do.
    pub transform: &'a mut [Transform; VECTOR],
}

const MASK: usize = VECTOR - 1;

impl Packets {
    /// Packets in the vector.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The numbers of all packets.
    pub fn numbers(&self) -> core::ops::Range<u16> {
        0..self.len
    }

    /// Adds a received frame; gives it back when the vector is full.
    #[inline]
    pub fn push(&mut self, frame: Frame, ingress: PortId) -> Option<Frame> {
        if usize::from(self.len) == VECTOR {
            return Some(frame);
        }
        let i = usize::from(self.len) & MASK;
        self.all.frames[i] = Some(frame);
        self.all.meta[i] = Meta { ingress, ..Meta::default() };
        self.len += 1;
        None
    }

    /// How many more packets fit.
    #[must_use]
    pub fn room(&self) -> usize {
        VECTOR - usize::from(self.len)
    }

    /// Adds a packet that was taken out of an earlier vector, and numbers it.
    ///
    /// # Errors
    /// Gives the frame back when the vector is full.
    pub fn resume(&mut self, frame: Frame, meta: Meta, key: FlowKey) -> Result<u16, Frame> {
        let number = self.len;
        if let Some(frame) = self.push(frame, meta.ingress) {
            return Err(frame);
        }
        let i = usize::from(number) & MASK;
        self.all.meta[i] = meta;
        self.all.key[i] = key;
        Ok(number)
    }

    /// Forgets all packets, giving frames that are still here to `put`.
    #[inline]
    pub fn drain(&mut self, mut put: impl FnMut(Frame)) {
        for slot in self.all.frames.iter_mut().take(usize::from(self.len)) {
            if let Some(frame) = slot.take() {
                put(frame);
            }
        }
        self.len = 0;
    }

    /// Takes a packet's frame out.
    #[inline]
    pub fn take(&mut self, i: u16) -> Option<Frame> {
        self.all.frames[usize::from(i) & MASK].take()
    }

    /// Puts a frame in the place of one that was taken out.
    #[inline]
    pub fn put(&mut self, i: u16, frame: Frame) {
        self.all.frames[usize::from(i) & MASK] = Some(frame);
    }

    /// A packet's frame.
    #[inline]
    pub fn frame_mut(&mut self, i: u16) -> Option<&mut Frame> {
        self.all.frames[usize::from(i) & MASK].as_mut()
    }

    /// A packet's bytes.
    #[inline]
    #[must_use]
    pub fn data(&self, i: u16) -> &[u8] {
        self.all.frames[usize::from(i) & MASK].as_ref().map_or(&[], Frame::data)
    }

    /// A packet's bytes, writable.
    #[inline]
    pub fn data_mut(&mut self, i: u16) -> &mut [u8] {
        self.all.frames[usize::from(i) & MASK].as_mut().map_or(&mut [], Frame::data_mut)
    }

    /// Starts to bring a packet's headers into the cache.
    #[inline]
    pub fn prefetch(&self, i: u16) {
        if let Some(frame) = &self.all.frames[usize::from(i) & MASK] {
            frame.prefetch();
        }
    }

    /// The same for where encapsulation writes.
    #[inline]
    pub fn prefetch_headroom(&self, i: u16) {
        if let Some(frame) = &self.all.frames[usize::from(i) & MASK] {
            frame.prefetch_headroom();
        }
    }

    /// A packet's metadata.
    #[inline]
    #[must_use]
    pub fn meta(&self, i: u16) -> &Meta {
        &self.all.meta[usize::from(i) & MASK]
    }

    /// A packet's metadata, writable.
    #[inline]
    pub fn meta_mut(&mut self, i: u16) -> &mut Meta {
        &mut self.all.meta[usize::from(i) & MASK]
    }

    /// A packet's flow key.
    #[inline]
    #[must_use]
    pub fn key(&self, i: u16) -> &FlowKey {
        &self.all.key[usize::from(i) & MASK]
    }

    /// What `rewrite` will do to a packet.
    #[inline]
    #[must_use]
    pub fn transform(&self, i: u16) -> &Transform {
        &self.all.transform[usize::from(i) & MASK]
    }

    /// What `rewrite` will do to a packet, writable.
    #[inline]
    pub fn transform_mut(&mut self, i: u16) -> &mut Transform {
        &mut self.all.transform[usize::from(i) & MASK]
    }

    /// What the slow path knows of a packet's flow.
    #[inline]
    #[must_use]
    pub fn setup(&self, i: u16) -> &Setup {
        &self.all.setup[usize::from(i) & MASK]
    }

    /// What the slow path knows of a packet's flow, writable.
    #[inline]
    pub fn setup_mut(&mut self, i: u16) -> &mut Setup {
        &mut self.all.setup[usize::from(i) & MASK]
    }

    /// What the lookup of a whole vector needs at once.
    #[inline]
    pub fn lookup(&mut self) -> Lookup<'_> {
        let (len, all) = (self.len(), &mut *self.all);
        Lookup {
            keys: all.key.get(..len).unwrap_or_default(),
            frames: &mut all.frames,
            meta: &mut all.meta,
            transform: &mut all.transform,
        }
    }

    /// Bytes, metadata and transform of a packet at once.
    #[inline]
    pub fn decided(&mut self, i: u16) -> (&mut [u8], &mut Meta, &Transform) {
        let (i, all) = (usize::from(i) & MASK, &mut *self.all);
        let data = all.frames[i].as_mut().map_or(&mut [][..], Frame::data_mut);
        (data, &mut all.meta[i], &all.transform[i])
    }

    /// Frame and metadata of a packet at once.
    #[inline]
    pub fn framed(&mut self, i: u16) -> (Option<&mut Frame>, &mut Meta) {
        let (i, all) = (usize::from(i) & MASK, &mut *self.all);
        (all.frames[i].as_mut(), &mut all.meta[i])
    }

    /// Bytes, metadata and key of a packet at once.
    #[inline]
    pub fn parts(&mut self, i: u16) -> (&mut [u8], &mut Meta, &mut FlowKey) {
        let (i, all) = (usize::from(i) & MASK, &mut *self.all);
        let data = all.frames[i].as_mut().map_or(&mut [][..], Frame::data_mut);
        (data, &mut all.meta[i], &mut all.key[i])
    }
}
