//! YAML text to JSON values with the line of every part, a document at a time.
//!
//! YAML as kubectl accepts it: anchors, aliases and merge keys (`<<`) yes, duplicate keys no. A document
//! with an error does not hide its neighbours: the text is cut at the document markers first.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

use super::scalar;
use crate::lines::Lines;

/// Deepest nesting accepted.
pub(super) const MAX_DEPTH: usize = 100;

/// Most values that aliases of one document may copy.
const MAX_ALIASED: usize = 100_000;

/// One document: its value, and the lines of its parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Located {
    pub(super) value: Value,
    pub(super) lines: Lines,
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) reason: String,
}

/// All documents of `text`; empty ones (null, only comments) are left out.
pub(super) fn documents(text: &str) -> Vec<Result<Located, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    for (first_line, chunk) in chunks(text) {
        read_chunk(chunk, first_line, &mut out);
    }
    out
}

/// Cuts `text` before each `---` and after each `...` (YAML 1.2.2, 9.1), with the number of each piece's first line.
fn chunks(text: &str) -> Vec<(u32, &str)> {
    let mut out = Vec::new();
    let (mut start, mut first_line) = (0, 1u32);
    let (mut at, mut line_number) = (0, 1u32);
    // Directives and comments before a `---` belong to the document after it.
    let mut content = false;
    for line in text.split_inclusive('\n') {
        let marker = |m: &str| {
            line.strip_prefix(m)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if marker("---") && content {
            out.push((first_line, text.get(start..at).unwrap_or_default()));
            (start, first_line) = (at, line_number);
        }
        let trimmed = line.trim();
        content |= marker("---") || !(trimmed.is_empty() || trimmed.starts_with(['#', '%']));
        at += line.len();
        line_number = line_number.saturating_add(1);
        if marker("...") {
            out.push((first_line, text.get(start..at).unwrap_or_default()));
            (start, first_line) = (at, line_number);
            content = false;
        }
    }
    out.push((first_line, text.get(start..).unwrap_or_default()));
    out
}

fn read_chunk(chunk: &str, first_line: u32, out: &mut Vec<Result<Located, SyntaxError>>) {
    let breaks = chunk.strip_suffix('\n').unwrap_or(chunk).matches('\n').count();
    let last_line = first_line.saturating_add(u32::try_from(breaks).unwrap_or(u32::MAX));
    let mut builder = Builder { first_line, last_line, ..Builder::default() };
    let mut parser = Parser::new_from_str(chunk);
    while let Some(event) = parser.next_event() {
        let result = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(e) => Err(builder.error(e.marker().line(), e.info())),
        };
        match result {
            Ok(Some(document)) if document.value.is_null() => {}
            Ok(Some(document)) => out.push(Ok(document)),
            Ok(None) => {}
            // What the parser says after an error is not to be trusted.
            Err(e) => return out.push(Err(e)),
        }
    }
}

/// A finished value, with what aliases to it cost.
#[derive(Clone)]
struct Node {
    value: Value,
    lines: Lines,
    size: usize,
    depth: usize,
    /// An untagged plain `<<`.
    merge: bool,
}

/// A mapping or sequence under construction.
struct Open {
    line: u32,
    anchor: usize,
    size: usize,
    depth: usize,
    kind: OpenKind,
}

enum OpenKind {
    Seq { items: Vec<Value>, lines: Vec<Lines> },
    Map { entries: Map<String, Value>, lines: Vec<(Box<str>, Lines)>, key: Option<Key>, merged: Vec<Node> },
}

struct Key {
    name: Option<String>,
    line: u32,
}

#[derive(Default)]
struct Builder {
    first_line: u32,
    last_line: u32,
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
}

impl Builder {
    fn line(&self, line: usize) -> u32 {
        // The parser counts lines of the chunk from 1.
        let offset = u32::try_from(line).unwrap_or(u32::MAX).saturating_sub(1);
        // What it misses at the end it places one line further.
        self.first_line.saturating_add(offset).min(self.last_line)
    }

    fn error(&self, line: usize, reason: &str) -> SyntaxError {
        SyntaxError { line: self.line(line), reason: format!("YAML: {reason}") }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<Option<Located>, SyntaxError> {
        let at = span.start.line();
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::DocumentStart(_) => {
                self.root = None;
                self.anchors.clear();
                self.aliased = 0;
            }
            Event::DocumentEnd => {
                let line = self.line(at);
                let root = self.root.take();
                return Ok(Some(root.map_or(
                    Located { value: Value::Null, lines: Lines::leaf(line) },
                    |n| Located { value: n.value, lines: n.lines },
                )));
            }
            Event::SequenceStart(anchor, tag) => {
                self.container_tag(at, tag.as_deref(), "seq")?;
                self.start(at, anchor, OpenKind::Seq { items: Vec::new(), lines: Vec::new() })?;
            }
            Event::MappingStart(anchor, tag) => {
                self.container_tag(at, tag.as_deref(), "map")?;
                let kind =
                    OpenKind::Map { entries: Map::new(), lines: Vec::new(), key: None, merged: Vec::new() };
                self.start(at, anchor, kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let anchor = open.anchor;
                    let node = finish(open);
                    self.put(at, node, anchor)?;
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(at, &text, style, tag.as_deref())?;
                let merge = style == ScalarStyle::Plain && tag.is_none() && text == "<<";
                let lines = Lines::leaf(self.line(at));
                self.put(at, Node { value, lines, size: 1, depth: 0, merge }, anchor)?;
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(self.error(at, "alias inside the value it stands for"));
                };
                self.aliased = self.aliased.saturating_add(node.size);
                if self.aliased > MAX_ALIASED {
                    return Err(self.error(at, "aliases expand to too many values"));
                }
                if self.open.len() + node.depth > MAX_DEPTH {
                    return Err(self.error(at, "nested too deeply"));
                }
                self.put(at, Node { merge: false, ..node }, 0)?;
            }
        }
        Ok(None)
    }

    fn start(&mut self, at: usize, anchor: usize, kind: OpenKind) -> Result<(), SyntaxError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(self.error(at, "nested too deeply"));
        }
        let line = self.line(at);
        self.open.push(Open { line, anchor, size: 1, depth: 0, kind });
        Ok(())
    }

    /// Puts a finished value where it belongs: as key, entry, item or root.
    fn put(&mut self, at: usize, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let line = self.line(at);
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.size = open.size.saturating_add(node.size);
        open.depth = open.depth.max(node.depth + 1);
        match &mut open.kind {
            OpenKind::Seq { items, lines } => {
                items.push(node.value);
                lines.push(node.lines);
            }
            OpenKind::Map { entries, lines, key, merged } => match key.take() {
                None => match key_name(&node) {
                    Ok(name) => *key = Some(Key { name, line }),
                    Err(reason) => return Err(self.error(at, reason)),
                },
                Some(Key { name: None, .. }) => {
                    if !add_merge(node, merged) {
                        return Err(self
                            .error(at, "the value of a merge key (<<) is not a mapping or a list of them"));
                    }
                }
                Some(Key { name: Some(name), line: key_line }) => {
                    if entries.contains_key(&name) {
                        let first =
                            lines.iter().find(|(k, _)| k.as_ref() == name).map_or(0, |(_, l)| l.line());
                        let reason = format!("YAML: key {name:?} is there twice, first on line {first}");
                        return Err(SyntaxError { line: key_line, reason });
                    }
                    lines.push((name.as_str().into(), node.lines.on(key_line)));
                    entries.insert(name, node.value);
                }
            },
        }
        Ok(())
    }

    fn container_tag(&self, at: usize, tag: Option<&Tag>, want: &str) -> Result<(), SyntaxError> {
        match tag {
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == want => Ok(()),
            Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(()),
            Some(tag) => Err(self.error(at, &format!("tag {tag} is not supported here"))),
            None => Ok(()),
        }
    }

    fn scalar(
        &self,
        at: usize,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
    ) -> Result<Value, SyntaxError> {
        let Some(tag) = tag else {
            let plain = style == ScalarStyle::Plain;
            return Ok(if plain { scalar::resolve(text) } else { Value::String(text.to_owned()) });
        };
        // The non-specific tag "!" makes a string of any scalar (YAML 1.2.2, 6.9.1).
        if tag.handle.is_empty() && tag.suffix == "!" {
            return Ok(Value::String(text.to_owned()));
        }
        let resolved = if tag.is_yaml_core_schema() {
            match tag.suffix.as_str() {
                "str" => Some(Value::String(text.to_owned())),
                "int" => scalar::integer(text),
                "float" => scalar::float(text),
                "bool" => Some(scalar::resolve(text)).filter(Value::is_boolean),
                "null" => Some(scalar::resolve(text)).filter(Value::is_null),
                _ => None,
            }
        } else {
            None
        };
        resolved.ok_or_else(|| self.error(at, &format!("{text:?} with tag {tag} is not supported")))
    }
}

/// The name of a mapping's key; `None` for the merge key.
fn key_name(node: &Node) -> Result<Option<String>, &'static str> {
    if node.merge {
        return Ok(None);
    }
    match &node.value {
        Value::String(s) => Ok(Some(s.clone())),
        Value::Number(n) => Ok(Some(n.to_string())),
        Value::Bool(b) => Ok(Some(b.to_string())),
        Value::Null => Err("a key is empty"),
        Value::Array(_) | Value::Object(_) => Err("a key is a list or a mapping"),
    }
}

/// Takes the value of a merge key: a mapping, or a list of mappings of which earlier ones win.
fn add_merge(node: Node, merged: &mut Vec<Node>) -> bool {
    match node.value {
        Value::Object(_) => merged.push(node),
        Value::Array(items) => {
            for (i, value) in items.into_iter().enumerate() {
                if !value.is_object() {
                    return false;
                }
                let lines = node.lines.index(i).cloned().unwrap_or_default();
                merged.push(Node { value, lines, size: 0, depth: 0, merge: false });
            }
        }
        _ => return false,
    }
    true
}

fn finish(open: Open) -> Node {
    let (value, lines) = match open.kind {
        OpenKind::Seq { items, lines } => (Value::Array(items), Lines::seq(open.line, lines)),
        OpenKind::Map { mut entries, mut lines, merged, .. } => {
            // What the mapping says itself wins over what it merges.
            for node in merged {
                let Value::Object(from) = node.value else { continue };
                for (key, value) in from {
                    if !entries.contains_key(&key) {
                        let line = node.lines.key(&key).cloned().unwrap_or_default();
                        lines.push((key.as_str().into(), line));
                        entries.insert(key, value);
                    }
                }
            }
            (Value::Object(entries), Lines::map(open.line, lines))
        }
    };
    Node { value, lines, size: open.size, depth: open.depth, merge: false }
}

#[cfg(test)]
mod tests;
