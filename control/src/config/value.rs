//! What a key accepts: one [`Check`] per kind of value.
#![forbid(unsafe_code)]

use crate::netdev::host::MAX_NAME;
use std::collections::BTreeMap;
use std::path::{Component, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use crate::model::ObjectName;

/// What a key accepts, and how its value is read and shown.
pub(super) trait Check<T> {
    /// The typed value, or what is wrong with it (without file, line and key).
    fn read(&self, value: &DeValue<'_>) -> Result<T, String>;

    /// What is allowed, for messages and for the documented file.
    fn allowed(&self) -> String;

    /// The value as TOML; `None` if it is no fixed one (taken from the machine).
    fn show(&self, value: &T) -> Option<String>;
}

/// "want …, not …" for a value of the wrong TOML type.
pub(super) fn wrong_type<T>(check: &impl Check<T>, value: &DeValue<'_>) -> String {
    let shown = match value {
        DeValue::Integer(i) => format!("the integer {i}"),
        DeValue::Float(x) => format!("the float {x}"),
        DeValue::Boolean(b) => format!("the boolean {b}"),
        DeValue::String(s) => format!("the string {}", quoted(s)),
        DeValue::Datetime(d) => format!("the date-time {d}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    format!("want {}, not {shown}", check.allowed())
}

/// `text` as a TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// An enum whose values are strings in the file.
pub(super) trait Choice: Copy + PartialEq + 'static {
    /// Every value and its text.
    const ALL: &'static [(&'static str, Self)];
}

/// Declares an enum with its text in the file.
macro_rules! choices {
    ($(#[$attr:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$attr])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Its text in the configuration file.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl $crate::config::value::Choice for $name {
            const ALL: &'static [(&'static str, Self)] = &[$(($text, $name::$variant),)+];
        }
    };
}
pub(super) use choices;

/// One of an enum's texts.
pub(super) struct OneOf;

impl<T: Choice> Check<T> for OneOf {
    fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        let DeValue::String(text) = value else { return Err(wrong_type::<T>(self, value)) };
        let found = T::ALL.iter().find(|(name, _)| *name == text.as_ref());
        found.map(|(_, v)| *v).ok_or_else(|| format!("{} is not {}", quoted(text), Check::<T>::allowed(self)))
    }

    fn allowed(&self) -> String {
        let names: Vec<String> = T::ALL.iter().map(|(name, _)| quoted(name)).collect();
        match names.as_slice() {
            [one] => one.clone(),
            several => format!("one of {}", several.join(", ")),
        }
    }

    fn show(&self, value: &T) -> Option<String> {
        T::ALL.iter().find(|(_, v)| v == value).map(|(name, _)| quoted(name))
    }
}

/// An integer in a range (both ends included), a power of two if so asked.
pub(super) struct Int {
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) power_of_two: bool,
}

/// Integers from `min` to `max`.
pub(super) fn int(min: u64, max: u64) -> Int {
    Int { min, max, power_of_two: false }
}

/// Powers of two from `min` to `max`.
pub(super) fn power_of_two(min: u64, max: u64) -> Int {
    Int { min, max, power_of_two: true }
}

impl Int {
    fn number(&self, value: &DeValue<'_>) -> Result<u64, String> {
        let DeValue::Integer(i) = value else { return Err(wrong_type::<u64>(self, value)) };
        let number = i128::from_str_radix(i.as_str(), i.radix()).ok().and_then(|n| u64::try_from(n).ok());
        match number {
            Some(n) if (self.min..=self.max).contains(&n) && (!self.power_of_two || n.is_power_of_two()) => {
                Ok(n)
            }
            _ => Err(format!("{i} is not {}", Check::<u64>::allowed(self))),
        }
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Check<T> for Int {
    fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        T::try_from(self.number(value)?).map_err(|_| format!("is not {}", Check::<u64>::allowed(self)))
    }

    fn allowed(&self) -> String {
        let what = if self.power_of_two { "a power of two" } else { "an integer" };
        format!("{what} from {} to {}", self.min, self.max)
    }

    fn show(&self, value: &T) -> Option<String> {
        (*value).try_into().ok().map(|n| n.to_string())
    }
}

/// A time, as an integer of `unit`.
pub(super) struct Time {
    range: Int,
    unit: Duration,
    name: &'static str,
}

/// Times from `min` to `max` microseconds.
pub(super) fn micros(min: u64, max: u64) -> Time {
    Time { range: int(min, max), unit: Duration::from_micros(1), name: "microseconds" }
}

/// Times from `min` to `max` milliseconds.
pub(super) fn millis(min: u64, max: u64) -> Time {
    Time { range: int(min, max), unit: Duration::from_millis(1), name: "milliseconds" }
}

/// Times from `min` to `max` seconds.
pub(super) fn seconds(min: u64, max: u64) -> Time {
    Time { range: int(min, max), unit: Duration::from_secs(1), name: "seconds" }
}

impl Check<Duration> for Time {
    fn read(&self, value: &DeValue<'_>) -> Result<Duration, String> {
        let DeValue::Integer(_) = value else { return Err(wrong_type(self, value)) };
        let number = self.range.number(value)?;
        u32::try_from(number)
            .ok()
            .and_then(|n| self.unit.checked_mul(n))
            .ok_or_else(|| format!("{number} is not {}", self.allowed()))
    }

    fn allowed(&self) -> String {
        format!("{}, {}", Check::<u64>::allowed(&self.range), self.name)
    }

    fn show(&self, value: &Duration) -> Option<String> {
        value.as_nanos().checked_div(self.unit.as_nanos()).map(|n| n.to_string())
    }
}

/// `true` or `false`.
pub(super) struct Flag;

impl Check<bool> for Flag {
    fn read(&self, value: &DeValue<'_>) -> Result<bool, String> {
        value.as_bool().ok_or_else(|| wrong_type(self, value))
    }

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn show(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

/// An absolute path.
pub(super) struct AbsolutePath;

impl Check<PathBuf> for AbsolutePath {
    fn read(&self, value: &DeValue<'_>) -> Result<PathBuf, String> {
        let DeValue::String(text) = value else { return Err(wrong_type(self, value)) };
        let path = PathBuf::from(text.as_ref());
        let plain = path.components().all(|c| !matches!(c, Component::ParentDir | Component::Prefix(_)));
        if !path.is_absolute() || !plain || text.contains('\0') {
            return Err(format!("{} is not {}", quoted(text), self.allowed()));
        }
        Ok(path)
    }

    fn allowed(&self) -> String {
        "an absolute path without \"..\"".to_owned()
    }

    fn show(&self, value: &PathBuf) -> Option<String> {
        Some(quoted(&value.to_string_lossy()))
    }
}

/// A path; a relative one is seen from the daemon's working directory.
pub(super) struct AnyPath;

impl Check<PathBuf> for AnyPath {
    fn read(&self, value: &DeValue<'_>) -> Result<PathBuf, String> {
        let DeValue::String(text) = value else { return Err(wrong_type(self, value)) };
        if text.is_empty() || text.contains('\0') {
            return Err(format!("{} is not {}", quoted(text), self.allowed()));
        }
        Ok(PathBuf::from(text.as_ref()))
    }

    fn allowed(&self) -> String {
        "a path".to_owned()
    }

    fn show(&self, value: &PathBuf) -> Option<String> {
        Some(quoted(&value.to_string_lossy()))
    }
}

/// A path; without it, something else is done.
pub(super) struct OptionalPath;

impl Check<Option<PathBuf>> for OptionalPath {
    fn read(&self, value: &DeValue<'_>) -> Result<Option<PathBuf>, String> {
        AnyPath.read(value).map(Some)
    }

    fn allowed(&self) -> String {
        AnyPath.allowed()
    }

    fn show(&self, value: &Option<PathBuf>) -> Option<String> {
        value.as_ref().and_then(|path| AnyPath.show(path))
    }
}

/// The URL of a server; without it, another place names it.
pub(super) struct ServerUrl;

impl Check<Option<String>> for ServerUrl {
    fn read(&self, value: &DeValue<'_>) -> Result<Option<String>, String> {
        let DeValue::String(text) = value else { return Err(wrong_type(self, value)) };
        let host = text.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
        let plain =
            |h: &&str| !h.is_empty() && !h.contains(['/', '?', '#', '@']) && !h.contains(char::is_whitespace);
        if host.filter(plain).is_none() {
            return Err(format!("{} is not {}", quoted(text), self.allowed()));
        }
        Ok(Some(text.trim_end_matches('/').to_owned()))
    }

    fn allowed(&self) -> String {
        "a URL \"https://HOST[:PORT]\"".to_owned()
    }

    fn show(&self, value: &Option<String>) -> Option<String> {
        value.as_deref().map(quoted)
    }
}

/// A node name; without it, taken from the machine.
pub(super) struct NodeName;

impl Check<Option<String>> for NodeName {
    fn read(&self, value: &DeValue<'_>) -> Result<Option<String>, String> {
        let DeValue::String(text) = value else { return Err(wrong_type(self, value)) };
        node_name(text).map(Some)
    }

    fn allowed(&self) -> String {
        "the node's name in Kubernetes (RFC 1123 subdomain: lower case letters, digits, '-' and '.')"
            .to_owned()
    }

    fn show(&self, value: &Option<String>) -> Option<String> {
        value.as_deref().map(quoted)
    }
}

/// `name` if it is an RFC 1123 subdomain.
pub(super) fn node_name(name: &str) -> Result<String, String> {
    crate::source::names::subdomain(name).map(|()| name.to_owned())
}

/// A list of network device names.
pub(super) struct Devices;

impl Check<Vec<String>> for Devices {
    fn read(&self, value: &DeValue<'_>) -> Result<Vec<String>, String> {
        let DeValue::Array(items) = value else { return Err(wrong_type(self, value)) };
        let mut out: Vec<String> = Vec::new();
        for item in items {
            let DeValue::String(name) = item.get_ref() else { return Err(wrong_type(self, item.get_ref())) };
            crate::source::names::device(name).map_err(|e| format!("{}: {e}", quoted(name)))?;
            if out.iter().any(|n| n == name.as_ref()) {
                return Err(format!("{} is there twice", quoted(name)));
            }
            out.push(name.to_string());
        }
        Ok(out)
    }

    fn allowed(&self) -> String {
        "a list of device names".to_owned()
    }

    fn show(&self, value: &Vec<String>) -> Option<String> {
        Some(format!("[{}]", value.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ")))
    }
}

/// A list of distinct core numbers.
pub(super) struct Cores;

/// Highest core number accepted (the kernel's `CONFIG_NR_CPUS` limit on x86-64 is 8192; nix's mask holds 1024).
const MAX_CORE: u64 = 1023;

impl Check<Vec<usize>> for Cores {
    fn read(&self, value: &DeValue<'_>) -> Result<Vec<usize>, String> {
        let DeValue::Array(items) = value else { return Err(wrong_type(self, value)) };
        let mut out: Vec<usize> = Vec::new();
        for item in items {
            let core: usize = int(0, MAX_CORE).read(item.get_ref())?;
            if out.contains(&core) {
                return Err(format!("core {core} is there twice"));
            }
            out.push(core);
        }
        Ok(out)
    }

    fn allowed(&self) -> String {
        format!("a list of core numbers, each from 0 to {MAX_CORE}")
    }

    fn show(&self, value: &Vec<usize>) -> Option<String> {
        Some(format!("[{}]", value.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
    }
}

/// A device's name with room for a suffix.
pub(super) struct HostDevice;

impl Check<String> for HostDevice {
    fn read(&self, value: &DeValue<'_>) -> Result<String, String> {
        let DeValue::String(name) = value else { return Err(wrong_type(self, value)) };
        crate::source::names::device(name).map_err(|e| format!("{}: {e}", quoted(name)))?;
        if name.len() > MAX_NAME {
            return Err(format!("{} is longer than {MAX_NAME} bytes", quoted(name)));
        }
        Ok(name.to_string())
    }

    fn allowed(&self) -> String {
        format!("a device name of at most {MAX_NAME} bytes")
    }

    fn show(&self, value: &String) -> Option<String> {
        Some(quoted(value))
    }
}

/// A table from "namespace/pod" to the device its traffic arrives by.
pub(super) struct PodDevices;

impl Check<BTreeMap<ObjectName, String>> for PodDevices {
    fn read(&self, value: &DeValue<'_>) -> Result<BTreeMap<ObjectName, String>, String> {
        let DeValue::Table(table) = value else { return Err(wrong_type(self, value)) };
        let mut out: BTreeMap<ObjectName, String> = BTreeMap::new();
        for (key, item) in table {
            let key = key.get_ref();
            let (namespace, name) = key
                .split_once('/')
                .filter(|(ns, name)| {
                    crate::source::names::label(ns).is_ok() && crate::source::names::subdomain(name).is_ok()
                })
                .ok_or_else(|| format!("{} is not \"namespace/pod\"", quoted(key)))?;
            let DeValue::String(device) = item.get_ref() else {
                return Err(wrong_type(self, item.get_ref()));
            };
            crate::source::names::device(device).map_err(|e| format!("{}: {e}", quoted(device)))?;
            if let Some((other, _)) = out.iter().find(|(_, d)| *d == device.as_ref()) {
                return Err(format!("{} is given to {} and to {other}", quoted(device), quoted(key)));
            }
            out.insert(
                ObjectName { namespace: namespace.to_owned(), name: name.to_owned() },
                device.to_string(),
            );
        }
        Ok(out)
    }

    fn allowed(&self) -> String {
        "a table { \"namespace/pod\" = \"device\", ... }".to_owned()
    }

    fn show(&self, value: &BTreeMap<ObjectName, String>) -> Option<String> {
        let items: Vec<String> =
            value.iter().map(|(k, v)| format!("{} = {}", quoted(&k.to_string()), quoted(v))).collect();
        Some(if items.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", items.join(", ")) })
    }
}
