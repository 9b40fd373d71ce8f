//! Native mode with fallback to generic; links pinned, taken over, detached.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpError as AyaXdpError, XdpLink, XdpLinkId, XdpMode};
use aya::programs::{ProgramError, Xdp};
use rustix::io::Errno;

use crate::device::{self, Device};
use crate::error::XdpError;
use crate::object;
use crate::pins::{self, PinDir, StalePin};

/// What a device is to the dataplane, which decides the program it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host side of a pod's veth, or of the host's: everything goes to the socket.
    Endpoint,
    /// The way out of the node: only the pinhole goes to the socket.
    Uplink,
}

impl Role {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Uplink => "uplink",
        }
    }
}

/// The mode that the configuration asks for (`xdp.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeRequest {
    /// Native, and generic where the driver refuses.
    #[default]
    Auto,
    /// Native or an error.
    Native,
    /// Generic even where native would do.
    Generic,
}

impl ModeRequest {
    fn accepts(self, mode: Mode) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => mode == Mode::Native,
            Self::Generic => mode == Mode::Generic,
        }
    }
}

/// The mode that a program runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// In the driver, before a socket buffer is made.
    Native,
    /// In the stack, on socket buffers: works everywhere, slower.
    Generic,
}

impl Mode {
    /// `native` or `generic`, as in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A device with our program on it.
#[derive(Debug)]
struct Attachment {
    name: String,
    role: Role,
    mode: Mode,
    link: FdLink,
    /// Where the link is pinned, if it is.
    pin: Option<PathBuf>,
}

/// All links of this process, and those that a previous one left pinned.
#[derive(Debug)]
pub(crate) struct Links {
    attached: BTreeMap<u32, Attachment>,
    stale: Vec<StalePin>,
    pins: Option<PinDir>,
    /// Whether links are pinned, or only old pins are looked after.
    pin: bool,
}

impl Links {
    pub(crate) fn new(pins: Option<PinDir>, pin: bool) -> Result<Self, XdpError> {
        let stale = pins.as_ref().map_or(Ok(Vec::new()), PinDir::scan)?;
        Ok(Self { attached: BTreeMap::new(), stale, pins, pin })
    }

    pub(crate) fn outlive_process(&self) -> bool {
        self.pin && self.pins.as_ref().is_some_and(PinDir::outlives_process)
    }

    /// Devices attached: index, name, role, mode.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &str, Role, Mode)> {
        self.attached.iter().map(|(ifindex, a)| (*ifindex, a.name.as_str(), a.role, a.mode))
    }

    pub(crate) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        name: &str,
        role: Role,
        request: ModeRequest,
    ) -> Result<Mode, XdpError> {
        let gone = || XdpError::NoDevice { name: name.to_owned(), ifindex };
        let device = device::query(ifindex)?.filter(|device| device.name == name).ok_or_else(gone)?;
        if let Some(mode) = self.keep(ebpf, ifindex, &device, role, request)? {
            return Ok(mode);
        }
        let (link, pin) = match self.take_over(ebpf, ifindex, &device, role, request)? {
            Some((link, pin)) => (link, Some(pin)),
            // The device may have lost an old program meanwhile: look again for who is on it.
            None => {
                let device = device::query(ifindex)?.ok_or_else(gone)?;
                (attach_new(ebpf, role.program(), ifindex, &device, request)?, None)
            }
        };
        let (link, pin) = self.repin(link, pin, ifindex, name)?;
        let mode = mode_of(ifindex)?.ok_or_else(gone)?;
        self.attached.insert(ifindex, Attachment { name: name.to_owned(), role, mode, link, pin });
        Ok(mode)
    }

    /// The device is ours already: nothing to do but perhaps put the other role's program there. `None`
    /// when it has to be attached anew, with what was there cleaned away.
    fn keep(
        &mut self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        device: &Device,
        role: Role,
        request: ModeRequest,
    ) -> Result<Option<Mode>, XdpError> {
        let Some(held) = self.attached.get(&ifindex) else { return Ok(None) };
        let (mode, program) = (held.mode, program_id(&held.link));
        let alive = program.is_some() && device.program.map(|(id, _)| id) == program;
        if !alive || !request.accepts(mode) {
            // A recreated device with the same index, a link cut by force, or another wish.
            self.detach(ifindex)?;
            return Ok(None);
        }
        if held.role == role {
            return Ok(Some(mode));
        }
        let Some(Attachment { name, link, pin, .. }) = self.attached.remove(&ifindex) else {
            return Ok(None);
        };
        let Some(link) = replace(object::program(ebpf, role.program())?, link)? else {
            pin.as_deref().map_or(Ok(()), pins::unlink)?;
            return Ok(None);
        };
        self.attached.insert(ifindex, Attachment { name, role, mode, link, pin });
        Ok(Some(mode))
    }

    /// Replaces the program of a link that a previous run left pinned on this device, without a moment
    /// in which the device has none.
    fn take_over(
        &mut self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        device: &Device,
        role: Role,
        request: ModeRequest,
    ) -> Result<Option<(FdLink, PathBuf)>, XdpError> {
        while let Some(at) = self.stale.iter().position(|pin| pin.ifindex == ifindex) {
            let stale = self.stale.swap_remove(at);
            let Ok(pinned) = PinnedLink::from_pin(&stale.path) else {
                pins::unlink(&stale.path)?;
                continue;
            };
            let link = FdLink::from(pinned);
            let old = program_id(&link);
            let usable = match device.program {
                Some((id, mode)) => Some(id) == old && request.accepts(mode),
                // The pin is of a device that is gone.
                None => false,
            };
            let replaced = if usable {
                replace(object::program(ebpf, role.program())?, link)?
            } else {
                drop(link);
                None
            };
            if let Some(link) = replaced {
                // The link may be of a device of that index in another namespace: look whom it serves.
                if device::query(ifindex)?.and_then(|now| now.program).map(|(id, _)| id) == program_id(&link)
                {
                    return Ok(Some((link, stale.path)));
                }
            }
            // All that held the link is gone now but its pin.
            pins::unlink(&stale.path)?;
            if let Some(old) = old {
                wait_detached(ifindex, &device.name, old)?;
            }
        }
        Ok(None)
    }

    /// Pins or unpins `link` as the setting says.
    fn repin(
        &self,
        link: FdLink,
        pin: Option<PathBuf>,
        ifindex: u32,
        name: &str,
    ) -> Result<(FdLink, Option<PathBuf>), XdpError> {
        match (pin, &self.pins) {
            (Some(path), _) if !self.pin => {
                pins::unlink(&path)?;
                Ok((link, None))
            }
            (None, Some(dir)) if self.pin => {
                let path = dir.path_of(ifindex, name);
                let pinned = link.pin(&path).map_err(|error| {
                    XdpError::file("pin the XDP link at", &path)(std::io::Error::other(error))
                })?;
                Ok((FdLink::from(pinned), Some(path)))
            }
            (pin, _) => Ok((link, pin)),
        }
    }

    /// Takes the program off a device; a device that is not attached is fine.
    pub(crate) fn detach(&mut self, ifindex: u32) -> Result<(), XdpError> {
        let Some(Attachment { name, link, pin, .. }) = self.attached.remove(&ifindex) else { return Ok(()) };
        let program = program_id(&link);
        if let Some(path) = pin {
            pins::unlink(&path)?;
        }
        drop(link);
        program.map_or(Ok(()), |program| wait_detached(ifindex, &name, program))
    }

    /// Drops the links of a previous run that nothing took over. Returns how many.
    pub(crate) fn reap_stale(&mut self) -> Result<usize, XdpError> {
        let mut reaped = 0;
        while let Some(StalePin { path, ifindex, name }) = self.stale.pop() {
            let program =
                PinnedLink::from_pin(&path).ok().and_then(|pinned| program_id(&FdLink::from(pinned)));
            pins::unlink(&path)?;
            reaped += 1;
            if let Some(program) = program {
                wait_detached(ifindex, &name, program)?;
            }
        }
        Ok(reaped)
    }

    /// Everything off and away. Goes on past errors and returns the first.
    pub(crate) fn shutdown(mut self) -> Result<(), XdpError> {
        let mut result = Ok(());
        for ifindex in self.attached.keys().copied().collect::<Vec<_>>() {
            result = result.and(self.detach(ifindex));
        }
        result = result.and(self.reap_stale().map(drop));
        result.and(self.pins.take().map_or(Ok(()), PinDir::remove))
    }
}

/// Attaches a program without pinning or taking over: the traffic programs.
pub(crate) fn attach_program(
    ebpf: &mut Ebpf,
    program: &'static str,
    ifindex: u32,
    name: &str,
    request: ModeRequest,
) -> Result<(FdLink, Mode), XdpError> {
    let gone = || XdpError::NoDevice { name: name.to_owned(), ifindex };
    let link = attach_new(ebpf, program, ifindex, &device::query(ifindex)?.ok_or_else(gone)?, request)?;
    Ok((link, mode_of(ifindex)?.ok_or_else(gone)?))
}

fn mode_of(ifindex: u32) -> Result<Option<Mode>, XdpError> {
    Ok(device::query(ifindex)?.and_then(|device| device.program).map(|(_, mode)| mode))
}

/// A fresh link, in the mode asked for.
fn attach_new(
    ebpf: &mut Ebpf,
    program: &'static str,
    ifindex: u32,
    device: &Device,
    request: ModeRequest,
) -> Result<FdLink, XdpError> {
    let name = &device.name;
    if let Some((program, _)) = device.program {
        return Err(XdpError::Busy { name: name.clone(), program: Some(program) });
    }
    let program = object::program(ebpf, program)?;
    let refused = |mode: Mode, error: ProgramError| match errno(&error) {
        Some(Errno::BUSY | Errno::EXIST) => XdpError::Busy { name: name.clone(), program: None },
        Some(Errno::NODEV) => XdpError::NoDevice { name: name.clone(), ifindex },
        _ => XdpError::Attach { name: name.clone(), mode: mode.as_str(), source: Box::new(error) },
    };
    if request != ModeRequest::Generic {
        match program.attach_to_if_index(ifindex, XdpMode::Driver) {
            Ok(id) => return into_link(program, id, name),
            Err(error) => match native_refusal(&error) {
                None => return Err(refused(Mode::Native, error)),
                Some(reason) if request == ModeRequest::Native => {
                    return Err(XdpError::Native {
                        name: name.clone(),
                        mtu: device.mtu,
                        reason,
                        source: Box::new(error),
                    });
                }
                Some(_) => {}
            },
        }
    }
    match program.attach_to_if_index(ifindex, XdpMode::Skb) {
        Ok(id) => into_link(program, id, name),
        Err(error) => Err(refused(Mode::Generic, error)),
    }
}

/// Why a driver refused native mode; `None` when generic mode would fare no better.
fn native_refusal(error: &ProgramError) -> Option<&'static str> {
    match errno(error)? {
        Errno::OPNOTSUPP => Some("the driver has no XDP"),
        Errno::RANGE => Some("the MTU of the device or of its peer is too large for one buffer"),
        Errno::NOSPC => Some("the device has too few receive queues for its peer's transmit queues"),
        Errno::INVAL => Some("the driver refuses, most often for an MTU too large or for LRO being on"),
        Errno::NOMEM => Some("the driver has too few queues or too little memory"),
        Errno::BUSY | Errno::EXIST | Errno::NODEV | Errno::PERM | Errno::ACCESS => None,
        _ => Some("the driver refuses"),
    }
}

fn errno(error: &ProgramError) -> Option<Errno> {
    let raw = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(AyaXdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    raw.map(Errno::from_raw_os_error)
}

/// Lets the link's program be replaced by `program` at one stroke; `None` when its device is gone.
fn replace(program: &mut Xdp, link: FdLink) -> Result<Option<FdLink>, XdpError> {
    let Ok(link) = XdpLink::try_from(link) else { return Ok(None) };
    match program.attach_to_link(link) {
        Ok(id) => into_link(program, id, "").map(Some),
        Err(_) => Ok(None),
    }
}

fn into_link(program: &mut Xdp, id: XdpLinkId, name: &str) -> Result<FdLink, XdpError> {
    let link = program.take_link(id).map_err(|error| XdpError::Attach {
        name: name.to_owned(),
        mode: "any",
        source: Box::new(error),
    })?;
    FdLink::try_from(link).map_err(|_| XdpError::NoLink { name: name.to_owned() })
}

fn program_id(link: &FdLink) -> Option<u32> {
    link.info().ok().map(|info| info.program_id())
}

/// The kernel frees a link that was pinned some moments after its last holder let go.
fn wait_detached(ifindex: u32, name: &str, program: u32) -> Result<(), XdpError> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut pause = Duration::from_micros(100);
    loop {
        match device::query(ifindex)?.and_then(|device| device.program) {
            Some((id, _)) if id == program => {}
            _ => return Ok(()),
        }
        if Instant::now() >= deadline {
            return Err(XdpError::StillAttached { name: name.to_owned(), program });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
