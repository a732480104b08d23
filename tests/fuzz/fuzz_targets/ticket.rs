//! A text that is a ticket is the text of that ticket.
#![no_main]

use agentnet::identity::Ticket;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for text in [text.to_owned(), format!("agentnet1{text}")] {
        if let Ok(ticket) = text.parse::<Ticket>() {
            assert_eq!(ticket.to_string(), text.trim());
        }
    }
});
