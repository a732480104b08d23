//! What many runs measured, in a number.

use std::time::Duration;

/// What so many in a hundred took at most (by nearest rank); nothing if that many never came to an end.
pub fn percentile(measured: impl IntoIterator<Item = Option<Duration>>, percent: usize) -> Option<Duration> {
    let mut sorted: Vec<_> = measured.into_iter().map(|took| took.unwrap_or(Duration::MAX)).collect();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().filter(|took| *took != Duration::MAX)
}

/// Prints the median and the 95th percentile of what several runs measured, and returns the latter.
///
/// # Panics
/// When a twentieth or more never came to an end.
pub fn report(what: &str, measured: &[Option<Duration>]) -> Duration {
    let [p50, p95] = [50, 95].map(|percent| percentile(measured.iter().copied(), percent));
    println!("{what}: p50 {p50:?}, p95 {p95:?} of {} runs", measured.len());
    p95.unwrap_or_else(|| panic!("{what}: {measured:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let of = |seconds: &[u64], percent| {
            percentile(seconds.iter().map(|s| Some(Duration::from_secs(*s))), percent).map(|took| took.as_secs())
        };
        assert_eq!([1, 50, 51, 75, 76, 100].map(|percent| of(&[4, 2, 3, 1], percent)), [1, 2, 3, 3, 4, 4].map(Some));
        assert_eq!(of(&[], 50), None);
    }

    #[test]
    fn what_never_ends_is_the_longest() {
        let measured = [None, Some(Duration::ZERO), Some(Duration::from_secs(1))];
        assert_eq!(percentile(measured, 66), Some(Duration::from_secs(1)));
        assert_eq!(percentile(measured, 67), None);
    }
}
