//! Names of pods: `<pool>-<five characters>`.

use opensandbox_api::names::PoolName;

/// What Kubernetes' own name generator uses: no vowels and no digits that look like letters, so that no
/// words come out.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Length of the suffix; 27^5 are 14 million names.
const LENGTH: usize = 5;

/// A sequence of names that differs from seed to seed.
#[derive(Debug)]
pub(super) struct Names {
    state: u64,
}

impl Names {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next name. It may be in use.
    ///
    /// # Errors
    ///
    /// If no name of a pod can begin with the name of the pool.
    pub(super) fn next(
        &mut self,
        pool: &PoolName,
    ) -> Result<String, opensandbox_api::names::Error> {
        pool.pod_name(&self.suffix())
    }

    fn suffix(&mut self) -> String {
        let mut bits = self.draw();
        (0..LENGTH)
            .map(|_| {
                let index = usize::try_from(bits % 27).unwrap_or_default();
                bits /= 27;
                char::from(ALPHABET[index])
            })
            .collect()
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): every 64-bit number once before any comes again.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_valid_and_seldom_repeat() {
        let pool: PoolName = "p".parse().unwrap();
        let mut names = Names::new(7);
        let made: BTreeSet<String> = (0..1_000).map(|_| names.next(&pool).unwrap()).collect();
        assert!(made.len() > 990, "{}", made.len());
        assert!(
            made.iter()
                .all(|name| name.len() == 7 && name.starts_with("p-"))
        );
        let other = Names::new(8).next(&pool).unwrap();
        assert_ne!(Names::new(7).next(&pool).unwrap(), other);
    }
}
