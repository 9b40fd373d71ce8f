//! The line each part of a manifest stands on, so that a problem or a verdict can cite file and line.
#![forbid(unsafe_code)]

/// A tree of lines in the shape of the document it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lines {
    line: u32,
    children: Children,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Children {
    #[default]
    None,
    Map(Vec<(Box<str>, Lines)>),
    Seq(Vec<Lines>),
}

impl Lines {
    /// A value without parts, on `line`.
    #[must_use]
    pub fn leaf(line: u32) -> Self {
        Self { line, children: Children::None }
    }

    /// A mapping that starts on `line`; each entry is on the line of its key.
    #[must_use]
    pub fn map(line: u32, entries: Vec<(Box<str>, Lines)>) -> Self {
        Self { line, children: Children::Map(entries) }
    }

    /// A sequence that starts on `line`.
    #[must_use]
    pub fn seq(line: u32, items: Vec<Lines>) -> Self {
        Self { line, children: Children::Seq(items) }
    }

    /// The same tree, said to start on `line` (an entry: the line of its key).
    #[must_use]
    pub fn on(mut self, line: u32) -> Self {
        self.line = line;
        self
    }

    /// Line of the value's first character, or of its key; from 1.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The entry `key` of a mapping.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<&Lines> {
        match &self.children {
            Children::Map(entries) => entries.iter().find(|(k, _)| k.as_ref() == key).map(|(_, l)| l),
            _ => None,
        }
    }

    /// Item `index` of a sequence.
    #[must_use]
    pub fn index(&self, index: usize) -> Option<&Lines> {
        match &self.children {
            Children::Seq(items) => items.get(index),
            _ => None,
        }
    }

    /// The entries of a mapping.
    pub(crate) fn entries(&self) -> &[(Box<str>, Lines)] {
        match &self.children {
            Children::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The line of `path`, as `spec.ingress[1].from`; of the nearest part above it that exists when it does not.
    ///
    /// Keys may hold dots (`metadata.annotations.fastpath.io/mac`): the longest key that fits is taken.
    #[must_use]
    pub fn at(&self, path: &str) -> u32 {
        let mut here = self;
        let mut rest = path;
        while !rest.is_empty() {
            let next = if let Some(inner) = rest.strip_prefix('[') {
                inner.split_once(']').and_then(|(n, tail)| Some((here.index(n.parse().ok()?)?, tail)))
            } else {
                here.entries()
                    .iter()
                    .filter_map(|(key, lines)| Some((key.len(), lines, rest.strip_prefix(key.as_ref())?)))
                    .filter(|(_, _, tail)| tail.is_empty() || tail.starts_with(['.', '[']))
                    .max_by_key(|(len, ..)| *len)
                    .map(|(_, lines, tail)| (lines, tail))
            };
            let Some((lines, tail)) = next else { break };
            here = lines;
            rest = tail.strip_prefix('.').unwrap_or(tail);
        }
        here.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_or_their_nearest_parent() {
        let annotations = Lines::map(
            4,
            vec![
                ("a".into(), Lines::leaf(5)),
                ("a.b/c".into(), Lines::leaf(6)),
                ("a.b".into(), Lines::leaf(7)),
            ],
        );
        let ingress =
            Lines::seq(10, vec![Lines::leaf(10), Lines::map(12, vec![("from".into(), Lines::leaf(13))])]);
        let doc = Lines::map(
            1,
            vec![
                ("metadata".into(), Lines::map(3, vec![("annotations".into(), annotations)])),
                ("spec".into(), Lines::map(9, vec![("ingress".into(), ingress)])),
            ],
        );
        for (path, line) in [
            ("", 1),
            ("metadata", 3),
            ("metadata.annotations.a", 5),
            ("metadata.annotations.a.b", 7),
            ("metadata.annotations.a.b/c", 6),
            ("metadata.annotations.x", 4),
            ("spec.ingress", 10),
            ("spec.ingress[0]", 10),
            ("spec.ingress[1]", 12),
            ("spec.ingress[1].from", 13),
            ("spec.ingress[1].from[7].ipBlock", 13),
            ("spec.ingress[2].from", 10),
            ("spec.ingress[x", 10),
            ("spec.egress", 9),
            ("status", 1),
        ] {
            assert_eq!(doc.at(path), line, "{path}");
        }
    }
}
