//! Live-frame packet generator and counting sink, for tests and benches.
//!
//! The kernel runs the program `generate` on frames of its own (`BPF_PROG_TEST_RUN` with
//! `BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18), and `XDP_TX` sends them: millions of packets a second from
//! one core. On a veth they arrive at the peer as if the device had sent them; the peer needs a native XDP
//! program, for example a [`Sink`].
#![forbid(unsafe_code)]

use aya::programs::links::FdLink;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, XdpMode};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::abi_traffic::{SinkCount, TEMPLATE_BYTES, Template};
use crate::attach::{self, Mode, ModeRequest};
use crate::error::XdpError;
use crate::object::{TrafficObject, program};

/// Frames a call; more would keep the receiver's NAPI from running.
const PER_CALL: u32 = 4096;
/// Frames the kernel hands to the device at a time.
const BATCH: u32 = 64;

/// How frames differ, beyond the frame given.
///
/// The n-th frame is of flow `n % flows`. The flow's number modulo `ports` is added to the source port,
/// the rest of it to the source address, or the destination address; checksums follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    /// Distinct flows, at least 1.
    pub flows: u32,
    /// Distinct source ports, at least 1; there are `flows / ports` addresses.
    pub ports: u16,
    /// Whether it is the destination address that differs.
    pub to_many: bool,
}

impl Default for Flows {
    fn default() -> Self {
        Self { flows: 1, ports: 1, to_many: false }
    }
}

/// Sends frames from a device as if its owner had sent them.
#[derive(Debug)]
pub struct Generator {
    object: TrafficObject,
    name: String,
    ifindex: u32,
    flows: Flows,
}

impl Generator {
    /// A generator on the device `name` of the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no such device or the kernel refuses the program.
    pub fn new(name: &str) -> Result<Self, XdpError> {
        let ifindex = index(name)?;
        let mut object = TrafficObject::load()?;
        // A test run of a program that is attached nowhere puts it into the kernel's XDP dispatcher and takes it out
        // again, each with an RCU grace period: some 30 ms a call. On the loopback device, where frames of this
        // program never come (it is generic there, and nothing is sent), it stays in. Without: slower, not wrong.
        let generate = program(&mut object.ebpf, "generate")?;
        let _ = generate.attach("lo", XdpMode::Skb);
        Ok(Self { object, name: name.to_owned(), ifindex, flows: Flows::default() })
    }

    /// Lets the frames of later calls belong to many flows.
    pub fn set_flows(&mut self, flows: Flows) {
        self.flows = flows;
    }

    /// Sends `frame` (Ethernet header first) `repeat` times. Frames that the device or its peer cannot
    /// take are lost silently, as on a wire: count at the receiver.
    ///
    /// # Errors
    /// When the kernel refuses: no such device any more, or a frame too short or too long (a page less
    /// some 600 bytes).
    pub fn send(&mut self, frame: &[u8], repeat: u32) -> Result<(), XdpError> {
        let refuse = |reason: String| XdpError::Generate { name: self.name.clone(), reason };
        if frame.len() < 14 {
            return Err(refuse(format!("a frame of {} bytes has no Ethernet header", frame.len())));
        }
        let length = u32::try_from(frame.len()).map_err(|_| refuse("the frame is too long".to_owned()))?;
        let template = template(frame, self.flows).map_err(refuse)?;
        self.object.template.set(0, template, 0).map_err(XdpError::map("write the generator's template"))?;

        let context = context(length, self.ifindex);
        let program = program(&mut self.object.ebpf, "generate")?;
        let mut left = repeat;
        while left > 0 {
            let now = left.min(PER_CALL);
            let options = TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                repeat: now,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            };
            program.test_run(options).map_err(|error| XdpError::Generate {
                name: self.name.clone(),
                reason: format!("a frame of {length} bytes: {error}"),
            })?;
            left -= now;
        }
        Ok(())
    }
}

/// Counts and drops every frame that a device receives.
#[derive(Debug)]
pub struct Sink {
    object: TrafficObject,
    mode: Mode,
    links: Vec<FdLink>,
}

impl Sink {
    /// A sink on the device `name` of the calling thread's network namespace, until dropped.
    ///
    /// # Errors
    /// As [`crate::Redirect::attach`].
    pub fn attach(name: &str, request: ModeRequest) -> Result<Self, XdpError> {
        let mut object = TrafficObject::load()?;
        let (link, mode) = attach::attach_program(&mut object.ebpf, "count", index(name)?, name, request)?;
        Ok(Self { object, mode, links: vec![link] })
    }

    /// Counts what the device `name` receives too.
    ///
    /// # Errors
    /// As [`Sink::attach`].
    pub fn also(&mut self, name: &str, request: ModeRequest) -> Result<(), XdpError> {
        let (link, _) = attach::attach_program(&mut self.object.ebpf, "count", index(name)?, name, request)?;
        self.links.push(link);
        Ok(())
    }

    /// The mode it runs in.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What was counted so far, over all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn count(&self) -> Result<SinkCount, XdpError> {
        let cpus = self.object.sink.get(&0, 0).map_err(XdpError::map("read the sink's counters"))?;
        Ok(cpus.iter().fold(SinkCount::default(), |sum, cpu| SinkCount {
            frames: sum.frames + cpu.frames,
            bytes: sum.bytes + cpu.bytes,
        }))
    }
}

fn index(name: &str) -> Result<u32, XdpError> {
    let gone = |_| XdpError::NoDevice { name: name.to_owned(), ifindex: 0 };
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(gone)?;
    netdevice::name_to_index(&any, name).map_err(gone)
}

/// `struct xdp_md` of a frame of `length` bytes that "came" from queue 0 of a device.
fn context(length: u32, ifindex: u32) -> [u8; 24] {
    let mut bytes = [0u8; 24];
    // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    bytes[4..8].copy_from_slice(&length.to_ne_bytes());
    bytes[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    bytes
}

/// The frame's start and where its source port, source address and checksums are.
fn template(frame: &[u8], flows: Flows) -> Result<Template, String> {
    let mut words = [0u64; TEMPLATE_BYTES / 8];
    let mut count = 0;
    for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
        count += 1;
    }
    let mut template = Template {
        words,
        count,
        flows: flows.flows,
        ports: u32::from(flows.ports.max(1)),
        addr: 0,
        port_offset: 0,
        addr_offset: 0,
        ip_sum_offset: 0,
        l4_sum_offset: 0,
        port: 0,
        ip_sum: 0,
        l4_sum: 0,
        zero: 0,
    };
    if flows.flows <= 1 {
        return Ok(template);
    }
    let no_ports = "flows are varied in TCP and UDP over plain IPv4 and IPv6 only".to_owned();
    let u16_at = |at: u16| Some(u16::from_be_bytes(*frame.get(usize::from(at)..)?.first_chunk()?));
    let u32_at = |at: u16| Some(u32::from_be_bytes(*frame.get(usize::from(at)..)?.first_chunk()?));
    let (proto, addr, l4) = match (u16_at(12), frame.get(14)) {
        (Some(0x0800), Some(0x45)) => {
            template.ip_sum_offset = 24;
            template.ip_sum = u16_at(24).ok_or_else(|| no_ports.clone())?;
            (frame.get(23), 26, 34)
        }
        (Some(0x86dd), Some(first)) if first >> 4 == 6 => (frame.get(20), 34, 54),
        _ => return Err(no_ports),
    };
    let sum_offset = match proto {
        Some(6) => l4 + 16,
        Some(17) => l4 + 6,
        _ => return Err(no_ports),
    };
    // The sum of the header's halves is the same whichever address differs.
    let addr = if flows.to_many { l4 - 4 } else { addr };
    template.addr_offset = addr;
    template.addr = u32_at(addr).ok_or_else(|| no_ports.clone())?;
    template.port_offset = l4;
    template.port = u16_at(l4).ok_or_else(|| no_ports.clone())?;
    template.l4_sum = u16_at(sum_offset).ok_or(no_ports)?;
    // UDP without a checksum stays without.
    if proto == Some(&6) || template.l4_sum != 0 {
        template.l4_sum_offset = sum_offset;
    }
    Ok(template)
}
