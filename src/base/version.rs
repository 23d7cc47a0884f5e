//! Which of two versions is the lower one.
//! Refuses to guess: what is not numbers with dots is not compared.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use std::cmp::Ordering;

/// The numbers of `v1.2.3` or `1.2.3`; None for anything else (a content id, a branch name).
fn numbers(version: &str) -> Option<Vec<u64>> {
    let plain = version.strip_prefix(['v', 'V']).unwrap_or(version);
    if !plain.contains('.') {
        return None;
    }
    plain.split('.').map(|part| part.parse().ok()).collect()
}

/// True when both are versions and `to` is lower than `from`. Missing parts count as 0.
pub fn is_downgrade(from: &str, to: &str) -> bool {
    let (Some(mut from), Some(mut to)) = (numbers(from), numbers(to)) else { return false };
    let parts = from.len().max(to.len());
    from.resize(parts, 0);
    to.resize(parts, 0);
    to.cmp(&from) == Ordering::Less
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn lower_numbers_are_a_downgrade_and_other_words_never() {
        for (from, to, wanted) in [
            ("1.10", "1.9", true),
            ("v2.0.0", "1.99", true),
            ("1.0", "1.0.0", false),
            ("1.0", "1.0.1", false),
            ("1.2", "a3f5c0ffee12", false),
            ("20260101", "1.0", false),
            ("main", "1.0", false),
        ] {
            assert_eq!(is_downgrade(from, to), wanted, "{from} -> {to}");
        }
    }
}
