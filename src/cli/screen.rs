//! A page that is drawn again and again on a terminal.
//!
//! It has a screen of its own (the terminal's alternate one), on which lines are cut, not wrapped. Whatever ends the
//! program in good order, what stood there before stands there again.

use std::io::{self, Write};

use terminal_size::{Height, Width, terminal_size};

/// Alternate screen, no cursor, no wrapping.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The same undone, in reverse order.
const LEAVE: &[u8] = b"\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Of a terminal that does not say how large it is.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };

/// How much fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Characters in a line.
    pub(super) columns: usize,
    /// Lines.
    pub(super) rows: usize,
}

/// The size of the terminal on standard output now.
pub(super) fn size() -> Size {
    let size =
        terminal_size().map(|(Width(columns), Height(rows))| Size { columns: columns.into(), rows: rows.into() });
    size.filter(|size| size.columns > 0 && size.rows > 0).unwrap_or(USUAL_SIZE)
}

/// Takes the screen.
pub(super) fn enter(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(ENTER)
}

/// Gives it back.
pub(super) fn leave(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(LEAVE)
}

/// Draws a page over the one before.
pub(super) fn draw(out: &mut dyn Write, page: &str, size: Size, unicode: bool) -> io::Result<()> {
    // Home; each line erases its own rest, then everything below goes: no flicker, unlike clearing first.
    out.write_all(b"\x1b[H")?;
    let lines: Vec<&str> = page.lines().collect();
    let hidden = lines.len().saturating_sub(size.rows);
    // The last row says what is not there.
    let shown = if hidden > 0 { size.rows.saturating_sub(1) } else { lines.len() };
    let mut text = String::new();
    let mut push = |line: &str| {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let line = fit(line, size.columns, unicode);
        text.push_str(&line);
        // At the end of a full line, its last character would be erased.
        if visible(&line) < size.columns {
            text.push_str("\x1b[K");
        }
    };
    lines.iter().take(shown).for_each(|line| push(line));
    if hidden > 0 {
        push(&format!("({} more lines)", hidden + 1));
    } else if shown < size.rows {
        push("");
        text.push_str("\x1b[J");
    }
    out.write_all(text.as_bytes())
}

/// The beginning of a line that fits; styles in it take no room and end where the line is cut.
fn fit(line: &str, columns: usize, unicode: bool) -> String {
    if visible(line) <= columns {
        return line.to_owned();
    }
    let (mut text, mut room) = (String::new(), columns.saturating_sub(1));
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            text.push(c);
            for c in rest.by_ref() {
                text.push(c);
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
            continue;
        }
        if room == 0 {
            break;
        }
        text.push(c);
        room -= 1;
    }
    text.push(if unicode { '…' } else { '>' });
    if line.contains('\x1b') {
        text.push_str("\x1b[0m");
    }
    text
}

/// Characters that take room.
fn visible(line: &str) -> usize {
    let mut parts = line.split('\x1b');
    let first = parts.next().map_or(0, |part| part.chars().count());
    let after_style =
        |part: &str| part.split_once(|c: char| c.is_ascii_alphabetic()).map_or(0, |(_, rest)| rest.chars().count());
    first + parts.map(after_style).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(page: &str, columns: usize, rows: usize) -> String {
        let mut out = Vec::new();
        draw(&mut out, page, Size { columns, rows }, false).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_cut_where_the_terminal_ends() {
        assert_eq!(fit("abcdef", 6, true), "abcdef");
        assert_eq!(fit("abcdef", 5, true), "abcd…");
        assert_eq!(fit("abcdef", 5, false), "abcd>");
        assert_eq!(fit("\x1b[1mabc\x1b[0mdef", 6, false), "\x1b[1mabc\x1b[0mdef");
        assert_eq!(fit("\x1b[1mabc\x1b[0mdef", 5, false), "\x1b[1mabc\x1b[0md>\x1b[0m");
        assert_eq!(fit("abc", 0, false), ">");
    }

    #[test]
    fn a_page_fits_the_screen_and_says_what_does_not() {
        assert_eq!(drawn("a\nb\n", 9, 5), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[K\x1b[J");
        assert_eq!(drawn("abc\nb\n", 3, 2), "\x1b[Habc\r\nb\x1b[K");
        assert_eq!(drawn("a\nb\n", 9, 2), "\x1b[Ha\x1b[K\r\nb\x1b[K");
        assert_eq!(drawn("a\nb\nc\nd\n", 20, 3), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n(2 more lines)\x1b[K");
    }

    #[test]
    fn leaving_undoes_entering() {
        let switches = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            text.split("\x1b[?").skip(1).map(str::to_owned).collect()
        };
        let mut undone: Vec<String> = switches(ENTER);
        undone.reverse();
        for (entered, left) in undone.iter().zip(switches(LEAVE)) {
            assert_eq!(entered.trim_end_matches(['h', 'l']), left.trim_end_matches(['h', 'l']));
            assert_ne!(entered, &left);
        }
    }
}
