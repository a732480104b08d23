//! The configuration file: TOML text to [`Settings`].

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::closest;
use super::{Invalid, Key, Origin, Problem, ProblemKind, Settings, Shape};

/// Reads the text of a configuration file. `path` is only used in messages.
///
/// # Errors
/// Text that is not TOML, keys that do not exist, values of the wrong type; each with its line.
pub fn parse_file(path: &Path, text: &str) -> Result<Settings, Invalid> {
    let reader = Reader { path, text };
    let table = DeTable::parse(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        Invalid::one(reader.problem(
            error.span().unwrap_or_default(),
            format!("not TOML: {message}"),
            "the file has lines like `port = 41641`; texts stand in double quotes".to_owned(),
        ))
    })?;
    let mut settings = Settings::default();
    let mut problems = Vec::new();
    for (name, value) in table.get_ref() {
        match reader.entry(name.get_ref(), name.span(), value) {
            Ok((key, values)) => settings.set(key, values, reader.origin(&value.span())),
            Err(problem) => problems.push(problem),
        }
    }
    Invalid::check(problems)?;
    Ok(settings)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn entry(
        &self,
        name: &str,
        name_span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(Key, Vec<String>), Problem> {
        let Some(key) = Key::ALL.iter().copied().find(|key| key.name() == name) else {
            let hint = match closest(name, Key::ALL.iter().map(|key| key.name())) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let names: Vec<_> = Key::ALL.iter().map(|key| key.name()).collect();
                    format!("the settings are {}", names.join(", "))
                }
            };
            return Err(self.problem(name_span, format!("there is no setting `{name}`"), hint));
        };
        let wrong_type = |wanted: &str, example: &str| {
            let found = described(value.get_ref());
            let hint = format!("for example `{} = {example}`", key.name());
            self.problem(value.span(), format!("`{}` takes {wanted}, not {found}", key.name()), hint)
        };
        let values = match (key.shape(), value.get_ref()) {
            (Shape::Text | Shape::List, DeValue::String(text)) => vec![text.clone().into_owned()],
            (Shape::Number, DeValue::Integer(number)) => {
                let number = i128::from_str_radix(number.as_str(), number.radix())
                    .map_err(|_| wrong_type("a smaller number", example(key)))?;
                vec![number.to_string()]
            }
            (Shape::List, DeValue::Array(array)) => array
                .iter()
                .map(|element| match element.get_ref() {
                    DeValue::String(text) => Ok(text.clone().into_owned()),
                    _ => Err(wrong_type("a list of texts", example(key))),
                })
                .collect::<Result<_, _>>()?,
            (Shape::Text, _) => return Err(wrong_type("a text", example(key))),
            (Shape::Number, _) => return Err(wrong_type("a number", example(key))),
            (Shape::List, _) => return Err(wrong_type("a list of texts", example(key))),
        };
        Ok((key, values))
    }

    fn origin(&self, span: &Range<usize>) -> Origin {
        let before = self.text.as_bytes().iter().take(span.start);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Origin::File { path: self.path.to_owned(), line }
    }

    fn problem(&self, span: Range<usize>, message: String, hint: String) -> Problem {
        Problem { origin: self.origin(&span), kind: ProblemKind::Invalid, message, hint }
    }
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list like this",
        DeValue::Table(_) => "a table",
    }
}

fn example(key: Key) -> &'static str {
    match key {
        Key::Name => "\"build-7\"",
        Key::Tun => "\"agentnet0\"",
        Key::Port => "41641",
        Key::Rendezvous => "[\"AGENTID@rendezvous.example.org:41641\"]",
        Key::Discovery => "[\"lan\"]",
        Key::Ipv4Range => "\"100.64.0.0/10\"",
        Key::PortMapping => "\"off\"",
        Key::MetricsListen => "\"127.0.0.1:9464\"",
        Key::StateDir => "\"/var/lib/agentnet\"",
        Key::Socket => "\"/run/agentnet/agentnet.sock\"",
        Key::LogLevel => "\"info\"",
        Key::LogFormat => "\"text\"",
        Key::Mtu => "1420",
        Key::Queues => "2",
        Key::User => "\"agentnet\"",
        Key::Confine => "\"on\"",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let invalid = parse_file(Path::new("a.toml"), text).unwrap_err();
        invalid.problems().iter().map(|problem| format!("{problem} | {}", problem.hint)).collect()
    }

    #[test]
    fn every_key_is_read_with_its_line() {
        let text = "# comment\nname = \"one\"\nport = 0x10\n\ndiscovery = [\"lan\",\n \"dht\"]\nrendezvous = \"a,b\"\n";
        let settings = parse_file(Path::new("a.toml"), text).unwrap();
        let get = |key| settings.get(key).cloned().unwrap();
        assert_eq!(get(Key::Name).values, ["one"]);
        assert_eq!(get(Key::Name).origin, Origin::File { path: "a.toml".into(), line: 2 });
        assert_eq!(get(Key::Port).values, ["16"]);
        assert_eq!(get(Key::Discovery).values, ["lan", "dht"]);
        assert_eq!(get(Key::Discovery).origin, Origin::File { path: "a.toml".into(), line: 5 });
        assert_eq!(get(Key::Rendezvous).values, ["a,b"]);
        assert_eq!(settings.get(Key::Mtu), None);
    }

    #[test]
    fn unknown_keys_are_named_with_what_was_meant() {
        assert_eq!(
            problems("name = \"a\"\nprot = 1\n"),
            ["a.toml, line 2: there is no setting `prot` | did you mean `port`?"]
        );
        let far = problems("colour = 1");
        assert!(far[0].contains("the settings are name, tun, port"), "{far:?}");
    }

    #[test]
    fn wrong_types_say_what_is_right() {
        assert_eq!(
            problems("port = \"x\"\nname = 7\n"),
            [
                "a.toml, line 1: `port` takes a number, not a text | for example `port = 41641`",
                "a.toml, line 2: `name` takes a text, not a number | for example `name = \"build-7\"`",
            ]
        );
        assert!(problems("[port]\nx = 1")[0].contains("not a table"));
        assert!(problems("discovery = [1]")[0].contains("takes a list of texts"));
        assert!(problems("port = 99999999999999999999999999999999999999999999")[0].contains("smaller number"));
    }

    #[test]
    fn broken_syntax_has_its_line() {
        let found = problems("name = \"a\"\nport = \n");
        assert!(found[0].starts_with("a.toml, line 2: not TOML: "), "{found:?}");
        assert!(problems("name = \"a\"\nname = \"b\"\n")[0].contains("line 2"));
    }
}
