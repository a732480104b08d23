//! What can be wrong with a configuration, and how it is told.

use std::fmt;

use super::Origin;
use crate::api;

/// What kind of problem it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The value, the key or the syntax is wrong.
    Invalid,
    /// It is right, and this version cannot do it.
    NotAvailable,
}

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// What kind it is.
    pub kind: ProblemKind,
    /// What is wrong; names the key.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// Everything wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Invalid {
    problems: Vec<Problem>,
}

impl Invalid {
    /// One problem.
    #[must_use]
    pub fn one(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }

    /// `Ok` when there is no problem.
    ///
    /// # Errors
    /// The problems, in the order of their lines.
    pub fn check(mut problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by_key(|problem| match problem.origin {
            Origin::File { line, .. } => (1, line),
            _ => (0, 0),
        });
        Err(Self { problems })
    }

    /// The problems.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn code(&self) -> api::ErrorCode {
        let all = |test: fn(&Problem) -> bool| self.problems.iter().all(test);
        if all(|problem| problem.kind == ProblemKind::NotAvailable) {
            api::ErrorCode::NotAvailable
        } else if all(|problem| matches!(problem.origin, Origin::Flag(_))) {
            api::ErrorCode::Usage
        } else {
            api::ErrorCode::ConfigInvalid
        }
    }
}

impl From<Invalid> for api::Error {
    /// One problem is told as it is; several as a list, one a line.
    fn from(invalid: Invalid) -> Self {
        let code = invalid.code();
        if let [problem] = invalid.problems.as_slice() {
            return Self::new(code, problem.to_string(), problem.hint.clone());
        }
        let mut message = format!("the configuration has {} problems", invalid.problems.len());
        for problem in &invalid.problems {
            message.push_str(&format!("\n{problem} ({})", problem.hint));
        }
        Self::new(code, message, "correct them, then try `agentnet config check`")
    }
}

/// The candidate that was most likely meant by a mistyped word, if any is near enough.
pub(super) fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(&word, &candidate.replace('-', "_")), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: insertions, deletions, replacements, swaps of neighbours.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    let mut last_left = None;
    for (i, l) in left.chars().enumerate() {
        let mut row = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let mut cost = (above[j] + usize::from(l != *r)).min(above[j + 1] + 1).min(row[j] + 1);
            if j > 0 && last_left == Some(*r) && right[j - 1] == l {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut above, row);
        last_left = Some(l);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let keys = ["port", "log_level", "ipv4_range", "mtu"];
        let closest = |word| closest(word, keys.iter().copied());
        assert_eq!(closest("prot"), Some("port"));
        assert_eq!(closest("log-level"), Some("log_level"));
        assert_eq!(closest("IPV4_rnge"), Some("ipv4_range"));
        assert_eq!(closest("colour"), None);
        assert_eq!(closest(""), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("port", "port"), 0);
        assert_eq!(distance("prot", "port"), 1);
        assert_eq!(distance("", "port"), 4);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
