//! Files whose text the kernel makes while it is read, as in `/proc`. They show no size, and reading one in
//! small pieces has the kernel make it again for each.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Room for nearly all of them: one read, and one that finds the end.
const ROOM: usize = 8 * 1024;

/// Reads a file, `limit` bytes of it at most.
///
/// # Errors
///
/// It is not there, or may not be read.
pub fn read(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ROOM);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_up_to_the_limit() {
        let whole = read("/proc/self/status", u64::MAX).unwrap();
        assert!(whole.ends_with(b"\n") && whole.starts_with(b"Name:"));
        assert_eq!(read("/proc/self/status", 5).unwrap(), b"Name:");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long");
        let long = vec![7; 3 * ROOM + 1];
        std::fs::write(&path, &long).unwrap();
        assert_eq!(read(&path, u64::MAX).unwrap(), long);
        let missing = read("/proc/self/none", u64::MAX).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
