//! Changes a setting in the text of a configuration file, and nothing else: comments and order stay.

use std::ops::Range;

use toml::de::DeTable;

use super::{Key, Shape};

/// The text with `key` set to `values`, written as [`super::Given`] has them. Text that is not TOML comes back as it is.
#[must_use]
pub fn with_setting(text: &str, key: Key, values: &[String]) -> String {
    let Ok(table) = DeTable::parse(text) else { return text.to_owned() };
    let found = table.get_ref().iter().find(|(name, _)| name.get_ref() == key.name());
    let value = written(key.shape(), values);
    if let Some((_, old)) = found {
        return replaced(text, old.span(), &value);
    }
    let line = format!("{} = {value}\n", key.name());
    let with_line = |at: usize| {
        let separator = if at > 0 && !text.get(..at).is_some_and(|before| before.ends_with('\n')) { "\n" } else { "" };
        replaced(text, at..at, &format!("{separator}{line}"))
    };
    // The comment may stand inside a value of several lines.
    let below = place(text, key).map(with_line).filter(|text| has(text, key));
    below.unwrap_or_else(|| with_line(text.len()))
}

fn has(text: &str, key: Key) -> bool {
    DeTable::parse(text).is_ok_and(|table| table.get_ref().keys().any(|name| name.get_ref() == key.name()))
}

/// The end of the line that shows the setting in a comment.
fn place(text: &str, key: Key) -> Option<usize> {
    let mut end = 0;
    text.split_inclusive('\n').find_map(|line| {
        end += line.len();
        let shown = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix(key.name())?;
        shown.trim_start().starts_with('=').then_some(end)
    })
}

fn replaced(text: &str, range: Range<usize>, with: &str) -> String {
    let before = text.get(..range.start).unwrap_or_default();
    let after = text.get(range.end..).unwrap_or_default();
    format!("{before}{with}{after}")
}

fn written(shape: Shape, values: &[String]) -> String {
    match shape {
        Shape::Text => quoted(&values.concat()),
        Shape::Number => values.concat(),
        Shape::List => format!("[{}]", values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", ")),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::parse_file;
    use super::*;

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn a_value_is_replaced_where_it_stands() {
        let text = "# about\nport = 1 # mine\nrendezvous = [\n  \"a\", # old\n  \"b\",\n]\nname = 'x'\n";
        assert_eq!(with_setting(text, Key::Port, &texts(&["7"])), text.replace("port = 1", "port = 7"));
        assert_eq!(
            with_setting(text, Key::Rendezvous, &texts(&["c", "d"])),
            "# about\nport = 1 # mine\nrendezvous = [\"c\", \"d\"]\nname = 'x'\n"
        );
        assert_eq!(with_setting(text, Key::Name, &texts(&["y"])), text.replace("'x'", "\"y\""));
    }

    #[test]
    fn a_new_value_stands_below_its_comment_or_at_the_end() {
        let text = "# Name.\n#name = \"build-7\"\n\n#port = 1\n";
        assert_eq!(
            with_setting(text, Key::Name, &texts(&["y"])),
            "# Name.\n#name = \"build-7\"\nname = \"y\"\n\n#port = 1\n"
        );
        assert_eq!(with_setting("# port", Key::Port, &texts(&["7"])), "# port\nport = 7\n");
        assert_eq!(with_setting("#port = 1", Key::Port, &texts(&["7"])), "#port = 1\nport = 7\n");
        assert_eq!(with_setting("", Key::Discovery, &[]), "discovery = []\n");
    }

    #[test]
    fn a_comment_inside_a_value_is_no_place() {
        let text = "rendezvous = [\n  #port = 1\n]\n";
        assert_eq!(with_setting(text, Key::Port, &texts(&["7"])), format!("{text}port = 7\n"));
        let text = "rendezvous = [\n  \"\"\"\n#port = 1\n\"\"\"]\n";
        assert_eq!(with_setting(text, Key::Port, &texts(&["7"])), format!("{text}port = 7\n"));
    }

    #[test]
    fn what_is_no_toml_is_not_touched() {
        assert_eq!(with_setting("port 1\n", Key::Port, &texts(&["7"])), "port 1\n");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            values in proptest::collection::vec(".{0,12}", 0..4),
            text in "(#[ a-z=]{0,20}\n|\n|port = [0-9]\n|#rendezvous = \\[\\]\n){0,5}",
        ) {
            let path = Path::new("x");
            prop_assume!(parse_file(path, &text).is_ok());
            let other = parse_file(path, &text).unwrap().get(Key::Port).map(|given| given.values.clone());
            let text = with_setting(&text, Key::Rendezvous, &values);
            let read = parse_file(path, &text).unwrap();
            prop_assert_eq!(&read.get(Key::Rendezvous).unwrap().values, &values);
            prop_assert_eq!(read.get(Key::Port).map(|given| given.values.clone()), other);
            // Once more, over what stands there.
            let again = with_setting(&text, Key::Rendezvous, &values);
            prop_assert_eq!(again, text);
        }
    }
}
