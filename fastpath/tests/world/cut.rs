//! Cuts frames into fragments and joins them again, the latter by etherparse.

use std::collections::BTreeMap;

use fastpath::wire::ipv6;
use fastpath::wire::testgen::refresh_ipv4_checksum;

fn is_v6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// The part of a frame that fragmentation cuts.
pub fn body(frame: &[u8]) -> &[u8] {
    &frame[if is_v6(frame) { 54 } else { 34 }..]
}

/// One fragment of a frame: bytes `start..end` of its body.
pub fn fragment(frame: &[u8], ident: u16, start: usize, end: usize) -> Vec<u8> {
    let (body, more) = (body(frame), end < body(frame).len());
    let part = &body[start..end];
    let offset = u16::try_from(start / 8).unwrap();
    let mut out = frame[..frame.len() - body.len()].to_vec();
    if is_v6(frame) {
        let next = std::mem::replace(&mut out[20], ipv6::ext::FRAGMENT);
        out[18..20].copy_from_slice(&u16::try_from(part.len() + 8).unwrap().to_be_bytes());
        out.extend([next, 0]);
        out.extend((offset << 3 | u16::from(more)).to_be_bytes());
        out.extend((0xbeef_0000 | u32::from(ident)).to_be_bytes());
        out.extend(part);
    } else {
        out[16..18].copy_from_slice(&u16::try_from(part.len() + 20).unwrap().to_be_bytes());
        out[18..20].copy_from_slice(&ident.to_be_bytes());
        out[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
        out.extend(part);
        refresh_ipv4_checksum(&mut out);
    }
    out
}

/// The fragments of a frame, cut every `size` bytes.
pub fn cut(frame: &[u8], ident: u16, size: usize) -> Vec<Vec<u8>> {
    let len = body(frame).len();
    (0..len).step_by(size).map(|start| fragment(frame, ident, start, len.min(start + size))).collect()
}

/// Identification, offset, whether more follow, and data of a fragment.
fn read(frame: &[u8]) -> (u16, usize, bool, &[u8]) {
    match etherparse::SlicedPacket::from_ethernet(frame).unwrap().net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            let offset = header.fragments_offset().value();
            (header.identification(), usize::from(offset) * 8, header.more_fragments(), &frame[34..])
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let Some(etherparse::Ipv6ExtensionSlice::Fragment(f)) =
                ip.extensions().clone().into_iter().next()
            else {
                panic!("no fragment: {frame:02x?}")
            };
            let ident = u16::try_from(f.identification() & 0xffff).unwrap();
            (ident, usize::from(f.fragment_offset().value()) * 8, f.more_fragments(), &frame[62..])
        }
        other => panic!("{other:?}"),
    }
}

/// The frame that fragments were cut from, by their identification. All of one have the same addresses.
pub fn join(mut fragments: Vec<Vec<u8>>) -> BTreeMap<u16, Vec<u8>> {
    fragments.sort_by_key(|f| (read(f).0, read(f).1));
    let mut out = BTreeMap::<u16, (Vec<u8>, bool)>::new();
    for f in &fragments {
        let (ident, offset, more, data) = read(f);
        let v6 = is_v6(f);
        let (headers, addresses) = if v6 { (54, 22..54) } else { (34, 26..34) };
        let (whole, ended) = out.entry(ident).or_insert_with(|| (f[..headers].to_vec(), false));
        assert_eq!(whole[addresses.clone()], f[addresses], "a fragment went another way");
        assert!(!*ended && whole.len() - headers == offset, "{ident}: gap or overlap at {offset}");
        if offset == 0 && v6 {
            whole[20] = f[54];
        }
        whole.extend(data);
        *ended = !more;
    }
    let whole = |(mut frame, ended): (Vec<u8>, bool)| {
        assert!(ended, "the end is missing");
        let len = u16::try_from(body(&frame).len()).unwrap();
        if is_v6(&frame) {
            frame[18..20].copy_from_slice(&len.to_be_bytes());
        } else {
            frame[16..18].copy_from_slice(&(len + 20).to_be_bytes());
            frame[20..22].fill(0);
            refresh_ipv4_checksum(&mut frame);
        }
        frame
    };
    out.into_iter().map(|(ident, frame)| (ident, whole(frame))).collect()
}
