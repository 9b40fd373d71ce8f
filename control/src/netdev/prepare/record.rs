//! The record of what was changed on which device, on disk before the change is made.
//!
//! A daemon that is killed changes nothing back; the next one finds the record, keeps the originals it holds even
//! when it changes the same device again, and restores them at its own stop.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fastpath::packet::Mac;
use serde::{Deserialize, Serialize};

use super::super::{Channels, Error, Link, saved};

/// Name of the file in the state directory.
const FILE: &str = "devices.json";
/// Version of its form.
const VERSION: u32 = 1;

/// One device as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Original {
    /// Network namespace it is in; `None` is the daemon's.
    pub(super) netns: Option<PathBuf>,
    /// Interface index there.
    pub(super) index: u32,
    /// Name there.
    pub(super) name: String,
    /// Ethernet address, as text.
    pub(super) mac: Option<String>,
    /// It was down.
    pub(super) was_down: bool,
    /// Its channels, if they were changed.
    pub(super) channels: Option<Channels>,
    /// Offloads that were changed, and what they were.
    pub(super) features: BTreeMap<String, bool>,
}

impl Original {
    pub(super) fn of(link: &Link, netns: Option<&Path>) -> Self {
        Self {
            netns: netns.map(Path::to_owned),
            index: link.index,
            name: link.name.clone(),
            mac: link.mac.as_ref().map(Mac::to_string),
            was_down: false,
            channels: None,
            features: BTreeMap::new(),
        }
    }

    /// Whether this is about `link`: an index is used again, and in every pod there is an `eth0`.
    pub(super) fn is_of(&self, link: &Link, netns: Option<&Path>) -> bool {
        let same_mac = self.mac == link.mac.as_ref().map(Mac::to_string);
        let same_name = self.name == link.name && netns.is_none();
        self.netns.as_deref() == netns && self.index == link.index && (same_mac || same_name)
    }

    fn is_empty(&self) -> bool {
        !self.was_down && self.channels.is_none() && self.features.is_empty()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    devices: Vec<Original>,
}

/// The record, in memory and on disk alike.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    devices: Vec<Original>,
}

impl Record {
    /// Reads the record of `state_dir`; there need be none.
    pub(super) fn load(state_dir: &Path) -> Result<Self, Error> {
        let path = state_dir.join(FILE);
        let devices = match saved::load::<Content>(&path)? {
            Some(content) if content.version != VERSION => {
                return Err(saved::wrong_version(&path, content.version, VERSION));
            }
            Some(content) => content.devices,
            None => Vec::new(),
        };
        Ok(Self { path, devices })
    }

    pub(super) fn devices(&self) -> &[Original] {
        &self.devices
    }

    /// What is recorded of a device.
    pub(super) fn of(&self, link: &Link, netns: Option<&Path>) -> Option<&Original> {
        self.devices.iter().find(|o| o.is_of(link, netns))
    }

    /// Puts `original` in the place of what is recorded of its device, and saves.
    pub(super) fn put(&mut self, original: Original) -> Result<(), Error> {
        let same_place = |o: &&Original| (&o.netns, o.index) == (&original.netns, original.index);
        let known = self.devices.iter().find(same_place);
        if known.map_or_else(|| original.is_empty(), |known| *known == original) {
            // Nothing changes, as with a veth that was made as it should be: no file is written.
            return Ok(());
        }
        self.devices.retain(|o| (&o.netns, o.index) != (&original.netns, original.index));
        if !original.is_empty() {
            self.devices.push(original);
        }
        self.save()
    }

    /// Removes a device, and saves.
    pub(super) fn remove(&mut self, original: &Original) -> Result<(), Error> {
        self.devices.retain(|o| o != original);
        self.save()
    }

    fn save(&self) -> Result<(), Error> {
        let content = Content { version: VERSION, devices: self.devices.clone() };
        saved::save(&self.path, (!self.devices.is_empty()).then_some(&content))
    }
}
