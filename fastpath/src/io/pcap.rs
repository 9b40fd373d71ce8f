//! Classic pcap files (draft-ietf-opsawg-pcap): reader, writer, and a [`Port`](super::Port) that replays and records.
//!
//! Reads both byte orders and both time resolutions; writes little endian with nanoseconds. Link type Ethernet only.
//! Not read: pcapng, and files whose frames carry an FCS.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

mod port;

pub use port::PcapPort;

#[cfg(test)]
mod tests;

/// Most bytes of one packet that a reader accepts (libpcap's MAXIMUM_SNAPLEN).
pub const MAX_SNAPLEN: u32 = 262_144;

const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
const MAGIC_PCAPNG: u32 = 0x0a0d_0d0a;
const LINKTYPE_ETHERNET: u16 = 1;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// Why a pcap file cannot be read or written. Offsets are in bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The file ends inside a header or a packet.
    #[error("pcap: file ends at offset {offset}, inside {what}: {missing} bytes are missing")]
    Truncated {
        /// Where the file ends.
        offset: u64,
        /// What was being read.
        what: &'static str,
        /// Bytes that would have completed it.
        missing: usize,
    },
    /// The file does not begin with a pcap magic number.
    #[error("pcap: offset 0: magic number {0:#010x} is not that of a pcap file (0xa1b2c3d4 or 0xa1b23c4d)")]
    Magic(u32),
    /// The file is pcapng.
    #[error("pcap: offset 0: this is a pcapng file; convert it with `editcap -F pcap IN OUT`")]
    Pcapng,
    /// A version other than 2.4 (2.x is accepted).
    #[error("pcap: offset 4: version {major}.{minor} is not supported (2.4 is)")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A link type other than Ethernet (1).
    #[error("pcap: offset 20: link type {0} is not Ethernet (1)")]
    LinkType(u16),
    /// Packets that end with a frame check sequence.
    #[error(
        "pcap: offset 20: packets with a frame check sequence (link type field {0:#010x}) are not supported"
    )]
    Fcs(u32),
    /// A packet longer than any capture takes: the file is damaged.
    #[error("pcap: record at offset {offset}: {len} captured bytes, at most {MAX_SNAPLEN} are possible")]
    RecordLength {
        /// Where the record's header begins.
        offset: u64,
        /// Its captured length.
        len: u32,
    },
    /// More bytes captured than the packet had.
    #[error("pcap: record at offset {offset}: {captured} bytes captured of a packet of {original}")]
    CapturedTooLong {
        /// Where the record's header begins.
        offset: u64,
        /// Its captured length.
        captured: u32,
        /// Its original length.
        original: u32,
    },
    /// A fraction of a second that is a second or more.
    #[error("pcap: record at offset {offset}: fraction of a second {fraction} is out of range")]
    Timestamp {
        /// Where the record's header begins.
        offset: u64,
        /// Microseconds or nanoseconds, as the file has it.
        fraction: u32,
    },
    /// The file could not be read or written.
    #[error("pcap: offset {offset}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Time of a packet since the epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds.
    pub secs: u32,
    /// Nanoseconds, below 1 000 000 000.
    pub nanos: u32,
}

/// What a record says about its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was captured.
    pub time: Timestamp,
    /// Bytes in the file.
    pub captured: u32,
    /// Bytes on the wire; more than `captured` when the snap length cut the packet.
    pub original: u32,
}

/// Reads packets from a pcap file, one at a time.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    big_endian: bool,
    nanos: bool,
    snaplen: u32,
    offset: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the file's header. `input` should be buffered.
    ///
    /// # Errors
    /// [`PcapError`] when it is not a pcap file of Ethernet packets.
    pub fn new(input: R) -> Result<Self, PcapError> {
        let mut reader = Self { input, big_endian: false, nanos: false, snaplen: 0, offset: 0 };
        let mut header = [0; FILE_HEADER];
        reader.read("the file header", &mut header)?;
        let [m0, m1, m2, m3, a0, a1, i0, i1, _, _, _, _, _, _, _, _, s0, s1, s2, s3, l0, l1, l2, l3] = header;
        let magic = u32::from_le_bytes([m0, m1, m2, m3]);
        (reader.big_endian, reader.nanos) = match (magic, magic.swap_bytes()) {
            (MAGIC_MICROS, _) => (false, false),
            (MAGIC_NANOS, _) => (false, true),
            (_, MAGIC_MICROS) => (true, false),
            (_, MAGIC_NANOS) => (true, true),
            (MAGIC_PCAPNG, _) => return Err(PcapError::Pcapng),
            (other, _) => return Err(PcapError::Magic(other)),
        };
        let (major, minor) = (reader.u16([a0, a1]), reader.u16([i0, i1]));
        if major != 2 {
            return Err(PcapError::Version { major, minor });
        }
        reader.snaplen = reader.u32([s0, s1, s2, s3]);
        // Upper half: FCS length in 16-bit words (bits 28-31) if bit 26 is set; the rest is reserved.
        let link = reader.u32([l0, l1, l2, l3]);
        if link >> 26 & 1 != 0 && link >> 28 != 0 {
            return Err(PcapError::Fcs(link));
        }
        let [low, high, _, _] = link.to_le_bytes();
        let link_type = u16::from_le_bytes([low, high]);
        if link_type != LINKTYPE_ETHERNET {
            return Err(PcapError::LinkType(link_type));
        }
        Ok(reader)
    }

    /// The file's snap length: packets longer than it were cut; 0 when unlimited.
    #[must_use]
    pub fn snaplen(&self) -> u32 {
        self.snaplen
    }

    /// Reads the next packet into the front of `buf`; `None` at the end of the file.
    ///
    /// What does not fit into `buf` is skipped: compare [`Record::captured`] with its length.
    ///
    /// # Errors
    /// [`PcapError`] when the record is damaged or the file ends inside it; reading on is not possible then.
    pub fn next(&mut self, buf: &mut [u8]) -> Result<Option<Record>, PcapError> {
        let start = self.offset;
        let mut header = [0; RECORD_HEADER];
        if !self.read_or_end("a record header", &mut header)? {
            return Ok(None);
        }
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = header;
        let secs = self.u32([a0, a1, a2, a3]);
        let fraction = self.u32([b0, b1, b2, b3]);
        let captured = self.u32([c0, c1, c2, c3]);
        let original = self.u32([d0, d1, d2, d3]);
        let (unit, limit) = if self.nanos { (1, 1_000_000_000) } else { (1000, 1_000_000) };
        if fraction >= limit {
            return Err(PcapError::Timestamp { offset: start, fraction });
        }
        if captured > MAX_SNAPLEN {
            return Err(PcapError::RecordLength { offset: start, len: captured });
        }
        if captured > original {
            return Err(PcapError::CapturedTooLong { offset: start, captured, original });
        }
        let mut left = captured as usize;
        let fit = left.min(buf.len());
        if let Some(front) = buf.get_mut(..fit) {
            self.read("a packet", front)?;
            left -= fit;
        }
        let mut skip = [0; 512];
        while left > 0 {
            let n = left.min(skip.len());
            if let Some(part) = skip.get_mut(..n) {
                self.read("a packet", part)?;
            }
            left -= n;
        }
        let time = Timestamp { secs, nanos: fraction * unit };
        Ok(Some(Record { time, captured, original }))
    }

    fn u16(&self, bytes: [u8; 2]) -> u16 {
        if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(&self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    fn read(&mut self, what: &'static str, buf: &mut [u8]) -> Result<(), PcapError> {
        let wanted = buf.len();
        if wanted == 0 || self.read_or_end(what, buf)? {
            return Ok(());
        }
        Err(PcapError::Truncated { offset: self.offset, what, missing: wanted })
    }

    /// Fills `buf`; `false` when the file ends before its first byte.
    fn read_or_end(&mut self, what: &'static str, buf: &mut [u8]) -> Result<bool, PcapError> {
        let mut have = 0;
        while let Some(rest) = buf.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(PcapError::Truncated { offset: self.offset, what, missing: rest.len() }),
                Ok(n) => {
                    have += n;
                    self.offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(PcapError::Io { offset: self.offset, source }),
            }
        }
        Ok(true)
    }
}

/// Writes packets to a pcap file: little endian, nanoseconds, link type Ethernet.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    snaplen: u32,
    offset: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the file's header. Packets are cut to `snaplen` bytes (at most [`MAX_SNAPLEN`]; 0 means that).
    ///
    /// # Errors
    /// [`PcapError::Io`].
    pub fn new(output: W, snaplen: u32) -> Result<Self, PcapError> {
        let snaplen = if snaplen == 0 { MAX_SNAPLEN } else { snaplen.min(MAX_SNAPLEN) };
        let mut writer = Self { output, snaplen, offset: 0 };
        let mut header = [0u8; FILE_HEADER];
        let (magic, rest) = header.split_at_mut(4);
        magic.copy_from_slice(&MAGIC_NANOS.to_le_bytes());
        let (version, rest) = rest.split_at_mut(4);
        version.copy_from_slice(&[2, 0, 4, 0]);
        let (_zone_and_accuracy, rest) = rest.split_at_mut(8);
        let (snap, link) = rest.split_at_mut(4);
        snap.copy_from_slice(&snaplen.to_le_bytes());
        link.copy_from_slice(&u32::from(LINKTYPE_ETHERNET).to_le_bytes());
        writer.write_all(&header)?;
        Ok(writer)
    }

    /// Appends a packet, cut to the snap length.
    ///
    /// # Errors
    /// [`PcapError::Io`]; the file then ends with an incomplete record.
    pub fn write(&mut self, time: Timestamp, packet: &[u8]) -> Result<(), PcapError> {
        let original = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let captured = original.min(self.snaplen);
        let mut header = [0u8; RECORD_HEADER];
        let nanos = time.nanos.min(999_999_999);
        for (field, value) in header.chunks_exact_mut(4).zip([time.secs, nanos, captured, original]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        self.write_all(&header)?;
        self.write_all(packet.get(..captured as usize).unwrap_or(packet))
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// [`PcapError::Io`].
    pub fn flush(&mut self) -> Result<(), PcapError> {
        self.output.flush().map_err(|source| PcapError::Io { offset: self.offset, source })
    }

    /// The underlying output.
    pub fn into_inner(self) -> W {
        self.output
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), PcapError> {
        self.output.write_all(bytes).map_err(|source| PcapError::Io { offset: self.offset, source })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
