//! The ready profiles: what each says, and why.
#![forbid(unsafe_code)]

use super::Setting;
use crate::config::{Config, Wrong};

/// A ready configuration to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Most packets a second.
    Throughput,
    /// The shortest way through.
    Latency,
    /// Hundreds of pods.
    Dense,
    /// One or two cores, little memory.
    Small,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Throughput, Self::Latency, Self::Dense, Self::Small];

    /// Its name, and its file's without the ending.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Dense => "dense",
            Self::Small => "small",
        }
    }

    /// Its text: `configs/profiles/NAME.toml`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Throughput => include_str!("../../../configs/profiles/throughput.toml"),
            Self::Latency => include_str!("../../../configs/profiles/latency.toml"),
            Self::Dense => include_str!("../../../configs/profiles/dense.toml"),
            Self::Small => include_str!("../../../configs/profiles/small.toml"),
        }
    }

    /// What it gives.
    ///
    /// # Errors
    /// None that the tests would not find: it is part of this program.
    pub fn config(self) -> Result<Config, Vec<Wrong>> {
        Config::parse(self.text())
    }

    /// Its keys in order, each with the comment above it.
    #[must_use]
    pub fn settings(self) -> Vec<Setting> {
        let mut settings = Vec::new();
        let (mut section, mut reason) = (String::new(), Vec::new());
        for line in self.text().lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix('#') {
                reason.push(comment.trim());
            } else if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']').to_owned();
                reason.clear();
            } else if let Some((key, value)) = line.split_once('=') {
                settings.push(Setting {
                    section: section.clone(),
                    key: key.trim().to_owned(),
                    value: value.trim().to_owned(),
                    reason: std::mem::take(&mut reason).join(" "),
                });
            } else {
                reason.clear();
            }
        }
        settings
    }
}
