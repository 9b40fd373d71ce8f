//! The program by which a worker sends to many devices at once, run on live frames.
//!
//! A test run of a program that is attached nowhere puts it into the kernel's XDP dispatcher and takes it out again,
//! each with an RCU grace period: some 30 ms a call. So it is attached where no packet is: to the loopback device of a
//! network namespace of its own, which lives as long as the [`Sender`].
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::XdpMode;

use crate::error::XdpError;
use crate::object::{OutboxObject, leave_namespace, program};

/// The sending program and its memory, for one worker.
#[derive(Debug)]
pub struct Sender {
    object: OutboxObject,
    _namespace: File,
}

impl Sender {
    /// Loads the program. Needs CAP_SYS_ADMIN, and Linux 5.18 when it is used.
    ///
    /// # Errors
    /// When the kernel refuses the program or the namespace.
    pub fn load() -> Result<Self, XdpError> {
        let mut object = OutboxObject::load()?;
        // A thread of its own: the namespace of the caller stays.
        let aside = std::thread::scope(|scope| {
            let attach = || -> Result<File, XdpError> {
                const SELF: &str = "/proc/thread-self/ns/net";
                leave_namespace().map_err(XdpError::file("make a network namespace beside", SELF))?;
                let namespace = File::open(SELF).map_err(XdpError::file("open", SELF))?;
                program(&mut object.ebpf, "send")?.attach("lo", XdpMode::Skb).map_err(|source| {
                    XdpError::Attach { name: "lo".to_owned(), mode: "generic", source: Box::new(source) }
                })?;
                Ok(namespace)
            };
            scope.spawn(attach).join()
        });
        let namespace =
            aside.map_err(|_| XdpError::Missing { kind: "thread for program", name: "send" })??;
        Ok(Self { object, _namespace: namespace })
    }

    /// The program, to be run.
    ///
    /// # Errors
    /// When its descriptor cannot be duplicated.
    pub fn program(&mut self) -> Result<OwnedFd, XdpError> {
        let refused = |source| XdpError::Program { program: "send", source: Box::new(source) };
        let fd = program(&mut self.object.ebpf, "send")?.fd().map_err(refused)?;
        fd.as_fd().try_clone_to_owned().map_err(|e| refused(e.into()))
    }

    /// The map that packets are put into, to be mapped: [`crate::abi_outbox`].
    #[must_use]
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.object.memory.fd().as_fd()
    }
}
