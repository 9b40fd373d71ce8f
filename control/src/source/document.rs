//! One Kubernetes object of a manifest: its identity, its lines, and its decoding with lines in every error.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kinds::Kind;
use super::yaml::SyntaxError;
use super::{Problem, Severity, json, names, yaml};
use crate::lines::Lines;
use crate::model::{ObjectName, Origin};

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Document {
    place: Place,
    value: Value,
    lines: Lines,
    /// `apiVersion`.
    pub(super) api_version: String,
    /// `kind`.
    pub(super) kind: String,
}

/// Where an object was read.
#[derive(Clone, Debug)]
enum Place {
    /// A manifest.
    File(Arc<str>),
    /// The Kubernetes API; the object's kind as [`super::kinds::KINDS`] has it.
    Api(&'static str),
}

/// What a mistake in an object says: where and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: u32,
    pub(super) reason: String,
}

/// The objects of one file's text (`List` and `PodList` opened), and what is wrong with the rest.
pub(super) fn read(path: &Arc<str>, text: &str) -> Vec<Result<Document, Fault>> {
    let is_json = path.ends_with(".json");
    let found = if is_json { json::documents(text) } else { yaml::documents(text) };
    let mut out = Vec::new();
    for document in found {
        match document {
            Ok(d) => open(path, d.value, d.lines, None, &mut out),
            Err(SyntaxError { line, reason }) => out.push(Err(Fault { line, reason })),
        }
    }
    out
}

/// Adds the object `value`, or the items if it is a list. `inherit`: apiVersion and kind of items that have none.
fn open(
    path: &Arc<str>,
    mut value: Value,
    lines: Lines,
    inherit: Option<(&str, &str)>,
    out: &mut Vec<Result<Document, Fault>>,
) {
    let fault = |line: u32, reason: String| Err(Fault { line, reason });
    let Value::Object(object) = &mut value else {
        return out.push(fault(lines.line(), "not a Kubernetes object: want a mapping".to_owned()));
    };
    if let Some((api_version, kind)) = inherit {
        for (key, text) in [("apiVersion", api_version), ("kind", kind)] {
            if !object.contains_key(key) {
                object.insert(key.to_owned(), text.into());
            }
        }
    }
    let mut text = |key: &str| match object.get(key) {
        Some(Value::String(s)) if !s.is_empty() => Some(s.clone()),
        Some(_) => {
            out.push(fault(lines.at(key), format!("{key}: want a non-empty string")));
            None
        }
        None => {
            out.push(fault(lines.line(), format!("not a Kubernetes object: {key} is missing")));
            None
        }
    };
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else { return };
    let items_of = kind.strip_suffix("List").filter(|_| object.contains_key("items"));
    let Some(item_kind) = items_of else {
        return out.push(Ok(Document { place: Place::File(path.clone()), value, lines, api_version, kind }));
    };
    match object.remove("items") {
        Some(Value::Array(items)) => {
            let item_lines = lines.key("items");
            for (i, item) in items.into_iter().enumerate() {
                let lines = item_lines.and_then(|l| l.index(i)).cloned().unwrap_or_default();
                // Items of a typed list (PodList) come without apiVersion and kind.
                let inherit = Some((api_version.as_str(), item_kind)).filter(|(_, kind)| !kind.is_empty());
                open(path, item, lines, inherit, out);
            }
        }
        Some(Value::Null) | None => {}
        Some(_) => out.push(fault(lines.at("items"), "items: want a list".to_owned())),
    }
}

impl Document {
    /// An object as the API sends it (in lists without `apiVersion` and `kind`).
    pub(super) fn of_api(kind: &Kind, value: Value) -> Self {
        let (api_version, name) = (kind.api(), kind.kind.to_owned());
        Self { place: Place::Api(kind.kind), value, lines: Lines::default(), api_version, kind: name }
    }

    /// Where the object starts, without the lines of its parts.
    pub(super) fn origin(&self) -> Origin {
        match &self.place {
            Place::File(path) => Origin::File { path: path.clone(), line: self.lines.line(), parts: None },
            Place::Api(_) => Origin::Api,
        }
    }

    /// Where the object and each part of it is, for citing single rules of it.
    pub(super) fn origin_with_parts(&self) -> Origin {
        match &self.place {
            Place::File(path) => {
                let parts = Some(Arc::new(self.lines.clone()));
                Origin::File { path: path.clone(), line: self.lines.line(), parts }
            }
            Place::Api(_) => Origin::Api,
        }
    }

    /// Line of a part, as `spec.ingress[1]`; of the nearest part above it that exists when it does not.
    pub(super) fn line(&self, path: &str) -> u32 {
        self.lines.at(path)
    }

    /// The object as it was written.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// A problem of this object.
    pub(super) fn problem(&self, severity: Severity, fault: Fault) -> Problem {
        match &self.place {
            Place::File(path) => Problem::in_file(severity, path, fault.line, fault.reason),
            Place::Api(kind) => {
                let text = |key: &str| {
                    let value = self.value.get("metadata").and_then(|m| m.get(key)?.as_str());
                    value.unwrap_or_default().to_owned()
                };
                let name = ObjectName { namespace: text("namespace"), name: text("name") };
                Problem { origin: Origin::ApiObject { kind, name }, severity, reason: fault.reason }
            }
        }
    }

    /// `metadata.namespace` (`default` when there is none) and `metadata.name`, as far as they can be read.
    pub(super) fn identity(&self, namespaced: bool) -> Option<ObjectName> {
        let metadata = self.value.get("metadata")?;
        let name = metadata.get("name")?.as_str().filter(|n| !n.is_empty())?;
        let namespace = match metadata.get("namespace") {
            _ if !namespaced => "",
            None | Some(Value::Null) => "default",
            Some(Value::String(ns)) if ns.is_empty() => "default",
            Some(ns) => ns.as_str()?,
        };
        Some(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Decodes the object; fields that `T` does not know are reported to `notes` as warnings.
    pub(super) fn decode<T: DeserializeOwned>(&self, notes: &mut Vec<Problem>) -> Result<T, Fault> {
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&self.value, &mut track);
        let mut unknown = Vec::new();
        let decoded = serde_ignored::deserialize(tracked, |path| unknown.push(part_name(&path)));
        match decoded {
            Ok(object) => {
                for part in unknown {
                    let fault =
                        Fault { line: self.line(&part), reason: format!("{part}: unknown field, ignored") };
                    notes.push(self.problem(Severity::Warning, fault));
                }
                Ok(object)
            }
            Err(e) => {
                let part = tracked_name(&track.path());
                let (line, reason) = (self.line(&part), humane(&e.to_string()));
                Err(Fault {
                    line,
                    reason: if part.is_empty() { reason } else { format!("{part}: {reason}") },
                })
            }
        }
    }

    /// A collector for mistakes in the object's values.
    pub(super) fn faults(&self) -> Faults<'_> {
        Faults { document: self, found: Vec::new() }
    }
}

/// Collects every mistake in an object's values, each with its line.
#[derive(Debug)]
pub(super) struct Faults<'d> {
    document: &'d Document,
    found: Vec<Fault>,
}

impl Faults<'_> {
    /// Notes that the value at `part` is wrong.
    pub(super) fn add(&mut self, part: &str, reason: impl Display) {
        let line = self.document.line(part);
        self.found.push(Fault { line, reason: format!("{part}: {reason}") });
    }

    /// The value of `text`, or a note that it is no `what`.
    pub(super) fn parse<T: FromStr>(&mut self, part: &str, text: &str, what: &str) -> Option<T> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.add(part, format_args!("{text:?} is not {what}"));
        }
        parsed
    }

    /// The object's name, checked.
    pub(super) fn name(&mut self, namespaced: bool) -> ObjectName {
        let Some(name) = self.document.identity(namespaced) else {
            self.add("metadata.name", "is missing");
            return ObjectName { namespace: String::new(), name: String::new() };
        };
        if let Err(reason) = names::subdomain(&name.name) {
            self.add("metadata.name", reason);
        }
        if namespaced && let Err(reason) = names::label(&name.namespace) {
            self.add("metadata.namespace", reason);
        }
        name
    }

    /// The mistakes noted.
    pub(super) fn into_found(self) -> Vec<Fault> {
        self.found
    }

    /// `object`, if there is no mistake in it.
    pub(super) fn finish<T>(self, object: T) -> Result<T, Vec<Fault>> {
        if self.found.is_empty() { Ok(object) } else { Err(self.found) }
    }
}

/// A path of serde_ignored in our notation.
fn part_name(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", part_name(parent)),
        Path::Map { parent, key } => match part_name(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            part_name(parent)
        }
    }
}

/// A path of serde_path_to_error in our notation.
fn tracked_name(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut out = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Seq { index } => out.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Segment::Unknown => {}
        }
    }
    out
}

/// serde's words, with the remedy where a plain scalar was taken for something else.
fn humane(reason: &str) -> String {
    let unquoted = ["invalid type: boolean", "invalid type: integer", "invalid type: floating point"];
    if unquoted.iter().any(|p| reason.starts_with(p)) && reason.ends_with("expected a string") {
        format!("{reason} (put it in quotes)")
    } else {
        reason.to_owned()
    }
}
