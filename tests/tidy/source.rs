//! Just enough Rust to look at: text without comments and literals, functions, paths, public names.

use std::collections::BTreeSet;

/// A function and how long it is.
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// Lines from `fn` to its closing brace.
    pub(crate) lines: usize,
}

/// The text with the contents of comments, strings and character literals replaced by blanks; lines stay in place.
pub(crate) fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&letter| if letter == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// The text without the items behind `#[cfg(test)]`. Takes blanked text.
pub(crate) fn without_tests(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..start]);
        let item = &rest[start..];
        rest = match item.find(['{', ';']) {
            Some(open) if item[open..].starts_with('{') => &item[open + block_length(&item[open..])..],
            Some(end) => &item[end + 1..],
            None => "",
        };
    }
    out + rest
}

/// Every function that has a body. Takes blanked text.
pub(crate) fn functions(text: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (start, _) in text.match_indices("fn ") {
        if text[..start].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let item = &text[start..];
        let name: String = item[3..].trim_start().chars().take_while(|&letter| is_word(letter)).collect();
        // Neither occurs in a signature, except in array lengths: brackets are skipped.
        let mut depth = 0_i32;
        let body = item.char_indices().find(|&(_, letter)| {
            depth += match letter {
                '(' | '[' => 1,
                ')' | ']' => -1,
                _ => 0,
            };
            depth < 0 || (depth == 0 && (letter == '{' || letter == ';'))
        });
        if let (Some((open, '{')), false) = (body, name.is_empty()) {
            let end = open + block_length(&item[open..]);
            found.push(Function { name, lines: item[..end].lines().count() });
        }
    }
    found
}

/// Every path that is used, with `use` trees taken apart: `a::{b, c::d}` gives `a::b` and `a::c::d`. Takes blanked text.
pub(crate) fn paths(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let mut tree = &rest[start..];
        let before = tree.len();
        take_tree("", &mut tree, &mut found);
        // A tree always takes the word it begins with.
        debug_assert!(tree.len() < before);
        rest = tree;
    }
    found
}

/// Names of public items. Takes blanked text.
pub(crate) fn public_names(text: &str) -> BTreeSet<String> {
    const KINDS: &[&str] = &["fn", "struct", "enum", "trait", "const", "type", "union", "mod", "static"];
    const MODIFIERS: &[&str] = &["const", "async", "unsafe", "extern"];
    let mut names = BTreeSet::new();
    for (start, _) in text.match_indices("pub ") {
        let mut next = text[start + 4..].split(|letter: char| !is_word(letter)).filter(|word| !word.is_empty());
        let mut kind = next.next().unwrap_or_default();
        let mut name = next.next().unwrap_or_default();
        while MODIFIERS.contains(&kind) && (KINDS.contains(&name) || MODIFIERS.contains(&name)) {
            kind = name;
            name = next.next().unwrap_or_default();
        }
        if KINDS.contains(&kind) {
            names.insert(format!("{kind} {name}"));
        }
    }
    names
}

/// Every word. Takes blanked text.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !is_word(letter)).filter(|word| !word.is_empty())
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none begins there.
fn literal_end(chars: &[char], at: usize) -> usize {
    let is = |offset: usize, letter: char| chars.get(at + offset) == Some(&letter);
    let after_word = at > 0 && is_word(chars[at - 1]);
    match chars[at] {
        '/' if is(1, '/') => (at..chars.len()).find(|&i| chars[i] == '\n').unwrap_or(chars.len()),
        '/' if is(1, '*') => block_comment_end(chars, at),
        '"' => string_end(chars, at),
        'r' if !after_word => raw_string_end(chars, at, at + 1),
        'b' | 'c' if !after_word && is(1, 'r') => raw_string_end(chars, at, at + 2),
        // A lifetime has no closing quote one character later.
        '\'' if is(1, '\\') => (at + 3..chars.len()).find(|&i| chars[i] == '\'').map_or(chars.len(), |i| i + 1),
        '\'' if is(2, '\'') => at + 3,
        _ => at,
    }
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut i = at;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// `hashes` is where the hashes of `r##"…"##` would begin.
fn raw_string_end(chars: &[char], at: usize, hashes: usize) -> usize {
    let count = chars[hashes..].iter().take_while(|&&letter| letter == '#').count();
    if chars.get(hashes + count) != Some(&'"') {
        return at;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', count)).collect();
    let start = hashes + count + 1;
    let end = chars[start..].windows(close.len()).position(|window| window == close);
    end.map_or(chars.len(), |offset| start + offset + close.len())
}

/// Length of the block at the start of `text`, braces included.
fn block_length(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// Takes one path or `use` tree off the front of `text`.
fn take_tree(prefix: &str, text: &mut &str, found: &mut BTreeSet<String>) {
    let mut path = prefix.to_owned();
    loop {
        let word = text.find(|letter| !is_word(letter)).unwrap_or(text.len());
        path.push_str(&text[..word]);
        *text = &text[word..];
        let Some(after) = text.strip_prefix("::") else { break };
        *text = after.trim_start();
        path.push_str("::");
        if let Some(inside) = text.strip_prefix('{') {
            *text = inside;
            take_group(&path, text, found);
            return;
        }
        if !text.starts_with(is_word) {
            break;
        }
    }
    found.insert(path.trim_end_matches(':').to_owned());
}

/// Takes `a, b::c}` off the front of `text`.
fn take_group(prefix: &str, text: &mut &str, found: &mut BTreeSet<String>) {
    loop {
        *text = text.trim_start_matches(|letter: char| letter.is_whitespace() || letter == ',' || letter == '*');
        if let Some(rest) = text.strip_prefix('}') {
            *text = rest;
            return;
        }
        if !text.starts_with(is_word) {
            return;
        }
        take_tree(prefix, text, found);
        // `x as y`: the new name is no path of its own.
        if let Some(renamed) = text.trim_start().strip_prefix("as ") {
            *text = renamed.trim_start().trim_start_matches(is_word);
        }
    }
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}
