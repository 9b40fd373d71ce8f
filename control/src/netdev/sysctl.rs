//! Where the settings of this network namespace are written.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// Of the network namespace of the thread that opens it.
const OWN: &str = "/proc/sys/net";
/// The same in a container, whose own `/proc/sys` is read-only, where it has that of the host too.
const OF_HOST: &str = "/host/proc/sys/net";

/// File of a setting, as `ipv4/ip_forward`, where it can be written if it can be anywhere.
pub(crate) fn path(key: &str) -> PathBuf {
    below(Path::new(OF_HOST), Path::new(OWN)).join(key)
}

fn below<'a>(host: &'a Path, own: &'a Path) -> &'a Path {
    // A host may well have a folder of that name; only with the settings in it is it the container's.
    if host.join("ipv4").exists() { host } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_where_it_is_mounted() {
        let own = Path::new(OWN);
        assert_eq!(below(own, Path::new("/nowhere")), own);
        assert_eq!(below(Path::new("/tmp"), own), own);
    }
}
