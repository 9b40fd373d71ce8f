//! Which parts of a datagram were seen.
#![forbid(unsafe_code)]

/// Most fragments of one datagram: 64 KiB cut for the smallest MTU that IPv4 hosts use (576 bytes) are 119.
pub(super) const PIECES: usize = 128;

/// One fragment's part of the datagram, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u16,
    end: u16,
}

/// What a fragment is to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It has nothing in common with them.
    New,
    /// It covers exactly what another one covered.
    Again,
    /// It covers a part of what was seen, or disagrees about where the datagram ends.
    Overlap,
    /// There are too many.
    TooMany,
}

/// The fragments of one datagram, in the order of their offsets; none overlap.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    pieces: [Piece; PIECES],
    len: usize,
    /// Bytes they cover.
    covered: usize,
    /// Length of the datagram, once the last fragment was seen.
    total: Option<u16>,
}

impl Pieces {
    pub(super) const NONE: Pieces =
        Pieces { pieces: [Piece { start: 0, end: 0 }; PIECES], len: 0, covered: 0, total: None };

    /// Adds the fragment of bytes `start..end`, which are not empty; `last` when the datagram ends with it.
    pub(super) fn add(&mut self, start: u16, end: u16, last: bool) -> Seen {
        let piece = Piece { start, end };
        let seen = self.pieces.get(..self.len).unwrap_or_default();
        let at = seen.partition_point(|p| p.start < start);
        let (before, behind) = seen.split_at(at);
        let is_end = self.total == Some(end);
        if behind.first() == Some(&piece) {
            return if is_end == last { Seen::Again } else { Seen::Overlap };
        }
        let overlaps =
            before.last().is_some_and(|p| p.end > start) || behind.first().is_some_and(|p| p.start < end);
        let too_long = self.total.is_some_and(|total| end > total || last);
        let too_short = last && !behind.is_empty();
        if overlaps || too_long || too_short {
            return Seen::Overlap;
        }
        if self.len == PIECES {
            return Seen::TooMany;
        }
        self.pieces.copy_within(at..self.len, at + 1);
        if let Some(place) = self.pieces.get_mut(at) {
            *place = piece;
        }
        self.len += 1;
        self.covered += usize::from(end - start);
        if last {
            self.total = Some(end);
        }
        Seen::New
    }

    /// Whether nothing is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| usize::from(total) == self.covered)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        (self.len, self.covered, self.total) = (0, 0, None);
    }
}
