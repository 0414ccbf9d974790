//! The annotation `endpoints`: addresses of the pods, for upstream's server and ingress.
//!
//! A JSON array in the order of the shards; `""` stands for a pod without an address. Pure.

/// Reads the annotation; `None` if it is absent or says nothing sensible.
pub(super) fn read(text: Option<&str>) -> Option<Vec<String>> {
    serde_json::from_str(text?).ok()
}

/// The text for these addresses. Where the array would be longer than `max_bytes`, its end is left
/// out: readers look at the first address.
pub(super) fn text(addresses: &[String], max_bytes: usize) -> String {
    const OVERHEAD: usize = 3;
    let mut bytes = 2;
    let fits = addresses
        .iter()
        .take_while(|address| {
            bytes += address.len() + OVERHEAD;
            bytes <= max_bytes
        })
        .count();
    serde_json::to_string(&addresses[..fits]).expect("a list of texts is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_upstream_writes_it() {
        let addresses = ["10.0.0.5".to_owned(), String::new()];
        assert_eq!(text(&addresses, 1000), r#"["10.0.0.5",""]"#);
        assert_eq!(text(&[], 1000), "[]");
        assert_eq!(read(Some(r#"["10.0.0.5",""]"#)).unwrap(), addresses);
    }

    #[test]
    fn too_long_an_array_keeps_its_beginning() {
        let addresses: Vec<String> = (0..100).map(|n| format!("10.0.0.{n}")).collect();
        let short = text(&addresses, 100);
        assert!(short.len() <= 100);
        assert_eq!(
            read(Some(&short)).unwrap(),
            addresses[..short.matches("10.0").count()]
        );
    }
}
