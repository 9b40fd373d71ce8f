use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::io::{Pool, Port};

type Packets = Vec<(Timestamp, Vec<u8>)>;

/// A pcap file built by hand in any of the four flavours.
fn file(big: bool, nanos: bool, packets: &Packets) -> Vec<u8> {
    let u32b = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let u16b = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let mut out = Vec::new();
    out.extend(u32b(if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }));
    out.extend(u16b(2));
    out.extend(u16b(4));
    out.extend([0; 8]);
    out.extend(u32b(65535));
    out.extend(u32b(1));
    for (t, data) in packets {
        let len = u32::try_from(data.len()).unwrap();
        for v in [t.secs, if nanos { t.nanos } else { t.nanos / 1000 }, len, len] {
            out.extend(u32b(v));
        }
        out.extend(data);
    }
    out
}

fn read_all(bytes: &[u8], room: usize) -> Result<Vec<(Record, Vec<u8>)>, PcapError> {
    let mut reader = Reader::new(bytes)?;
    let mut buf = vec![0; room];
    let mut out = Vec::new();
    while let Some(record) = reader.next(&mut buf)? {
        let len = (record.captured as usize).min(room);
        out.push((record, buf[..len].to_vec()));
    }
    Ok(out)
}

fn packets() -> impl Strategy<Value = Packets> {
    let time = (any::<u32>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Timestamp { secs, nanos });
    // Miri interprets some thousand times slower.
    let (bytes, count) = if cfg!(miri) { (40, 4) } else { (1600, 12) };
    prop::collection::vec((time, prop::collection::vec(any::<u8>(), 0..bytes)), 0..count)
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 256 },
        failure_persistence: None,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn read_gives_what_was_written(packets in packets(), snaplen in prop_oneof![Just(0), 1u32..2000]) {
        let mut writer = Writer::new(Vec::new(), snaplen).unwrap();
        for (time, data) in &packets {
            writer.write(*time, data).unwrap();
        }
        writer.flush().unwrap();
        let got = read_all(&writer.into_inner(), 65536).unwrap();
        prop_assert_eq!(got.len(), packets.len());
        let limit = if snaplen == 0 { usize::MAX } else { snaplen as usize };
        for ((record, data), (time, sent)) in got.iter().zip(&packets) {
            prop_assert_eq!(record.time, *time);
            prop_assert_eq!(record.original as usize, sent.len());
            prop_assert_eq!(data, &sent[..sent.len().min(limit)]);
        }
    }

    #[test]
    fn all_flavours_read_alike(packets in packets(), big: bool, nanos: bool) {
        let got = read_all(&file(big, nanos, &packets), 65536).unwrap();
        prop_assert_eq!(got.len(), packets.len());
        for ((record, data), (time, sent)) in got.iter().zip(&packets) {
            prop_assert_eq!(record.time.secs, time.secs);
            prop_assert_eq!(record.time.nanos, if nanos { time.nanos } else { time.nanos / 1000 * 1000 });
            prop_assert_eq!(data, sent);
        }
    }

    #[test]
    fn damaged_files_end_in_an_error_or_in_packets(
        packets in packets(), big: bool, nanos: bool, cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut bytes = file(big, nanos, &packets);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        match read_all(&bytes, 100) {
            Ok(got) => prop_assert!(got.iter().all(|(_, data)| data.len() <= 100)),
            Err(error) => prop_assert!(error.to_string().starts_with("pcap: ")),
        }
    }

    /// Cut anywhere, the file gives its whole packets and then says where it ends.
    #[test]
    fn truncation_is_reported_where_it_is(packets in packets(), cut in any::<prop::sample::Index>()) {
        let whole = file(false, true, &packets);
        let cut = cut.index(whole.len() + 1);
        let mut ends = vec![24];
        for (_, data) in &packets {
            ends.push(ends.last().unwrap() + 16 + data.len());
        }
        match read_all(&whole[..cut], 65536) {
            Ok(got) => prop_assert_eq!(ends[got.len()], cut),
            Err(PcapError::Truncated { offset, missing, .. }) => {
                prop_assert_eq!(offset, cut as u64);
                prop_assert!(missing > 0 && !ends.contains(&cut));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn malformed_headers_are_named() {
    let good = file(false, false, &vec![(Timestamp::default(), vec![7; 60])]);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        read_all(&file, 2048).unwrap_err().to_string()
    };
    let cases = [
        (with(0, &[1, 2, 3, 4]), "offset 0: magic number 0x04030201"),
        (with(0, &[0x0a, 0x0d, 0x0d, 0x0a]), "pcapng"),
        (with(4, &[3]), "offset 4: version 3.4"),
        (with(20, &[113]), "offset 20: link type 113"),
        (with(23, &[0x24]), "frame check sequence"),
        (with(32, &[0xff, 0xff, 0xff, 0x7f]), "record at offset 24: 2147483647 captured bytes"),
        (with(32, &[61]), "record at offset 24: 61 bytes captured of a packet of 60"),
        (with(28, &[0x40, 0x42, 0x0f]), "record at offset 24: fraction of a second 1000000"),
    ];
    for (got, want) in cases {
        assert!(got.contains(want), "{got}");
    }
    assert!(Reader::new(&[][..]).unwrap_err().to_string().contains("24 bytes are missing"));
}

#[test]
fn reader_skips_what_does_not_fit() {
    let packets = vec![(Timestamp::default(), vec![1; 1500]), (Timestamp::default(), vec![2; 60])];
    let got = read_all(&file(true, true, &packets), 100).unwrap();
    assert_eq!((got[0].0.captured, got[0].1.len()), (1500, 100));
    assert_eq!(got[1].1, [2; 60]);
}

#[test]
fn port_replays_and_records() {
    let time = |secs| Timestamp { secs, nanos: 5 };
    let packets: Packets = (0..300).map(|i| (time(i), vec![u8::try_from(i % 251).unwrap(); 60])).collect();
    let mut with_giant = packets.clone();
    with_giant.insert(3, (time(3), vec![0; 5000]));
    let input = Reader::new(Cursor::new(file(false, true, &with_giant))).unwrap();
    let shared = Shared::default();
    let mut port = PcapPort::new(Some(input), Some(Writer::new(shared.clone(), 0).unwrap()));
    let mut pool = Pool::in_memory(400, 2048);

    let mut batch = Vec::new();
    assert_eq!(port.rx(&mut batch, 256), 0, "no frames before the first refill");
    while !port.finished() {
        port.refill(&mut pool);
        port.rx(&mut batch, 32);
        while !batch.is_empty() {
            port.tx(&mut batch);
        }
    }
    assert!(port.error().is_none());
    let stats = port.stats();
    assert_eq!((stats.rx_packets, stats.tx_packets, stats.kernel_rx_dropped), (300, 300, 1));
    Box::new(port).close(&mut pool);
    assert_eq!(pool.available(), 400);

    let recorded = read_all(&shared.0.lock().unwrap(), 2048).unwrap();
    assert_eq!(recorded.len(), 300);
    assert!(recorded.iter().zip(&packets).all(|((_, got), (_, sent))| got == sent));
    // Sent in batches of 32: the clock is that of the batch's last packet.
    assert_eq!(recorded[0].0.time, time(31));
}

#[test]
fn port_keeps_the_error_that_ended_it() {
    let mut bytes = file(false, true, &vec![(Timestamp::default(), vec![1; 60]); 3]);
    bytes.truncate(bytes.len() - 1);
    let mut port = PcapPort::new(
        Some(Reader::new(Cursor::new(bytes)).unwrap()),
        Some(Writer::new(Full(40), 0).unwrap()),
    );
    let mut pool = Pool::in_memory(300, 2048);
    port.refill(&mut pool);
    let mut batch = Vec::new();
    assert_eq!(port.rx(&mut batch, 10), 2);
    assert!(port.finished());
    assert!(matches!(port.error(), Some(PcapError::Truncated { .. })));
    assert_eq!(port.tx(&mut batch), 2);
    assert!(matches!(port.error(), Some(PcapError::Io { offset: 40, .. })));
    Box::new(port).close(&mut pool);
    assert_eq!(pool.available(), 300);
}

#[expect(clippy::disallowed_types, reason = "a test looks at the file while the port has it")]
#[derive(Clone, Default, Debug)]
struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with so many bytes left.
#[derive(Debug)]
struct Full(usize);

impl Write for Full {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() > self.0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= buf.len();
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
