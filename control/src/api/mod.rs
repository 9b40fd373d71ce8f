//! The daemon's API: a unix socket, one JSON request a line, one JSON answer a line.
//!
//! ```text
//! → {"version":1,"request":"flows","limit":10}
//! ← {"version":1,"result":{"flows":[…],"total":3}}
//! ← {"version":1,"error":{"code":"bad-request","message":"…"}}
//! ```
//!
//! A connection may ask several times, one request after another. The socket is the owner's only (0600).
//!
//! | Module | Holds |
//! |---|---|
//! | [`types`] | what the answers hold |
//! | [`server`] | the daemon's side; [`StateView`] is what it asks |
//! | [`client`] | the CLI's side, without a runtime |
//! | [`instance`] | one daemon per state folder: lock and socket |
#![forbid(unsafe_code)]

pub mod client;
pub mod instance;
pub mod server;
pub mod types;

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cni::record::{Key, Record};

pub use client::{Client, ClientError};
pub use instance::{Instance, InstanceError};
pub use server::{StateView, serve};

/// Version of the protocol; a server refuses another one.
pub const PROTOCOL: u32 = 1;

/// Name of the socket in the state folder.
pub const SOCKET_NAME: &str = "fastpath.sock";

/// Longest request line, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Flows listed when the request names no limit.
pub const DEFAULT_FLOWS: u32 = 1000;

/// Most flows listed for one request.
pub const MAX_FLOWS: u32 = 100_000;

/// What a client can ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The daemon's version: [`types::Version`].
    Version,
    /// How the daemon is: [`types::Status`].
    Status,
    /// Pods on this node: [`Vec`] of [`types::Endpoint`].
    Endpoints,
    /// Nodes and how each is reached: [`Vec`] of [`types::Node`].
    Nodes,
    /// The flow table: [`types::Flows`].
    Flows {
        /// Most flows to list; [`DEFAULT_FLOWS`] when missing, at most [`MAX_FLOWS`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
    },
    /// Routes in force: [`Vec`] of [`types::RouteRow`].
    Routes,
    /// Neighbours on the uplinks: [`Vec`] of [`types::Neighbor`].
    Neighbors,
    /// Drops by reason: [`Vec`] of [`types::Drop`].
    Drops,
    /// Policy rules in force on this node and what they counted: [`Vec`] of [`types::PolicyRow`].
    Policies,
    /// Services and their backends: [`Vec`] of [`types::ServiceRow`].
    Services,
    /// Counters of the ports and the XDP programs: [`types::Ports`].
    Ports,
    /// Counters of the graph's nodes: [`types::Runtime`].
    Runtime,
    /// What becomes of a connection: [`crate::explain::Explanation`]. Fields as on the command line.
    Explain {
        /// `NS/POD` or an address.
        from: String,
        /// `NS/POD`, `NS/svc/NAME` or an address.
        to: String,
        /// `tcp`, `udp`, `sctp` or `icmp`.
        proto: String,
        /// Destination port; not for ICMP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dport: Option<u16>,
    },
    /// What the CNI plugin needs to know of this node: [`types::CniNode`].
    CniNode,
    /// Attaches what the plugin made and recorded, and answers when it is under its policies: [`types::CniAttached`].
    CniAttach {
        /// The record.
        record: Box<Record>,
        /// Longest wait for the pod to be known, in milliseconds.
        wait_ms: u64,
    },
    /// Forgets an attachment whose device is gone: [`types::CniDetached`].
    CniDetach {
        /// The attachment.
        key: Key,
    },
    /// Whether an attachment is in order: [`types::CniChecked`].
    CniCheck {
        /// The attachment.
        key: Key,
    },
}

impl Request {
    /// How much longer than others this one may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match self {
            Request::CniAttach { wait_ms, .. } => Duration::from_millis(*wait_ms),
            _ => Duration::ZERO,
        }
    }
}

/// A request on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`PROTOCOL`].
    pub version: u32,
    /// The request.
    #[serde(flatten)]
    pub request: Request,
}

/// An answer on the wire: `result` or `error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply<T> {
    /// [`PROTOCOL`].
    pub version: u32,
    /// What was asked for.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub result: Option<T>,
    /// Why there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error, for programs.
    pub code: ErrorCode,
    /// What is wrong, for people.
    pub message: String,
}

impl ApiError {
    /// An error of kind `code`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request is no JSON, unknown, or has wrong values.
    BadRequest,
    /// The client speaks another version of the protocol.
    WrongVersion,
    /// The request line is longer than [`MAX_REQUEST`].
    TooLarge,
    /// Too many clients.
    Busy,
    /// What was asked for does not exist.
    NotFound,
    /// The daemon cannot say yet.
    NotReady,
    /// The daemon failed to answer.
    Internal,
}
