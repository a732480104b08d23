//! `agentnet netcheck`

use std::io::{self, Write};

use super::client::{Client, block_on};
use super::output::{Failure, Output, Page, clean};
use super::{Global, human};
use crate::api::{
    FamilyCheck, FilteringWord, MappingProtocol, MappingWord, Netcheck, PortMappingCheck, PortMappingState,
};

/// Show how this host looks from outside: UDP, addresses, NAT, servers
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let found: Netcheck = block_on(client.get("/v1/netcheck"))?;
    out.result(&found, |page| show(page, &found))
}

fn show(page: &mut Page, found: &Netcheck) -> io::Result<()> {
    page.field("UDP", yes_no(found.udp, "passes", "is blocked: no server answered"))?;
    page.field("IPv4", &family(&found.ipv4))?;
    page.field("IPv6", &family(&found.ipv6))?;
    page.field("NAT", &found.nat)?;
    page.field("mapping", &mapping(found))?;
    page.field("filtering", filtering(found.filtering))?;
    page.field(
        "hairpin",
        yes_no(
            found.hairpinning,
            "the NAT lets hosts behind it reach each other from outside",
            "hosts behind the NAT cannot reach each other from outside",
        ),
    )?;
    page.field("gateway", &port_mapping(&found.port_mapping))?;
    if !found.rendezvous.is_empty() {
        writeln!(page)?;
        let row = |server: &crate::api::RendezvousStatus| {
            let rtt = human::optional(server.rtt_ms, human::round_trip);
            vec![server.id.short(), server.address.clone(), server.state.clone(), rtt]
        };
        page.table(&["SERVER", "ADDRESS", "STATE", "ROUND TRIP"], found.rendezvous.iter().map(row).collect())?;
    }
    for entry in &found.advice {
        writeln!(page)?;
        page.field("problem", &entry.message)?;
        page.field("hint", &entry.hint)?;
    }
    Ok(())
}

fn yes_no<'a>(value: Option<bool>, yes: &'a str, no: &'a str) -> &'a str {
    match value {
        Some(true) => yes,
        Some(false) => no,
        None => "not known",
    }
}

fn family(check: &FamilyCheck) -> String {
    let local: Vec<String> = check.local.iter().map(ToString::to_string).collect();
    let local = if local.is_empty() { "no address".to_owned() } else { local.join(", ") };
    match (check.mapped, check.behind_nat) {
        (Some(mapped), Some(true)) => format!("{local}; behind a NAT, seen from outside as {mapped}"),
        (Some(mapped), _) => format!("{local}; seen from outside as {mapped}"),
        (None, _) if check.local.is_empty() => local,
        (None, _) => format!("{local}; no server sees it"),
    }
}

fn mapping(found: &Netcheck) -> String {
    let port = match found.port_preserved {
        Some(true) => ", and it is the agent's own",
        Some(false) => ", not the agent's own",
        None => "",
    };
    match (found.mapping, found.port_step) {
        (None, _) => "not known".to_owned(),
        (Some(MappingWord::EndpointIndependent), _) if found.mapping_certain == Some(false) => {
            format!("one port for all destinations{port}; as far as one server can tell")
        }
        (Some(MappingWord::EndpointIndependent), _) => format!("one port for all destinations{port}"),
        (Some(MappingWord::EndpointDependent), Some(step)) if step != 0 => {
            format!("another port for every destination, {step:+} each time")
        }
        (Some(MappingWord::EndpointDependent), _) => "another port for every destination, without a pattern".to_owned(),
    }
}

fn filtering(filtering: Option<FilteringWord>) -> &'static str {
    match filtering {
        Some(FilteringWord::EndpointIndependent) => "lets everybody in",
        Some(FilteringWord::AddressDependent) => "lets in whom this host sent to, from any port of theirs",
        Some(FilteringWord::AddressAndPortDependent) => "lets in whom this host sent to, from that port only",
        None => "not known; it takes a server with two addresses to tell",
    }
}

fn port_mapping(check: &PortMappingCheck) -> String {
    let gateway = human::optional(check.gateway, |gateway| gateway.to_string());
    let protocol = match check.protocol {
        Some(MappingProtocol::Pcp) => "PCP",
        Some(MappingProtocol::NatPmp) => "NAT-PMP",
        Some(MappingProtocol::Upnp) => "UPnP",
        None => "not known",
    };
    let address = human::optional(check.address, |address| address.to_string());
    match check.state {
        PortMappingState::Off => "not asked to let others in: port_mapping is off".to_owned(),
        PortMappingState::NoGateway => "there is none".to_owned(),
        PortMappingState::Asking => format!("{gateway} is being asked to let others in"),
        PortMappingState::Mapped => format!("{gateway} lets others in at {address} ({protocol})"),
        PortMappingState::None => {
            let reason = check.reason.as_deref().map_or_else(String::new, |reason| format!(": {}", clean(reason)));
            format!("{gateway} does not let others in{reason}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::testing::rendered;
    use super::*;

    #[test]
    fn every_fact_has_its_line() {
        let found: Netcheck = serde_json::from_str(
            r#"{"udp":true,"ipv4":{"local":["192.168.1.2"],"mapped":"203.0.113.9:41641","behind_nat":true},
            "ipv6":{"local":[],"mapped":null,"behind_nat":null},"mapping":"endpoint_independent",
            "mapping_certain":true,"port_step":null,"port_preserved":true,"filtering":"address_and_port_dependent",
            "hairpinning":false,"port_mapping":{"state":"mapped","gateway":"192.168.1.1","protocol":"nat_pmp",
            "address":"203.0.113.9:41641","reason":null},"nat":"easy: one port for all destinations","rendezvous":[
            {"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","address":"r.example:41641",
            "state":"connected","rtt_ms":12.34}],"advice":[]}"#,
        )
        .unwrap();
        insta::assert_snapshot!(rendered(|page| show(page, &found)), @r"
          UDP        passes
          IPv4       192.168.1.2; behind a NAT, seen from outside as 203.0.113.9:41641
          IPv6       no address
          NAT        easy: one port for all destinations
          mapping    one port for all destinations, and it is the agent's own
          filtering  lets in whom this host sent to, from that port only
          hairpin    hosts behind the NAT cannot reach each other from outside
          gateway    192.168.1.1 lets others in at 203.0.113.9:41641 (NAT-PMP)

        SERVER      ADDRESS          STATE      ROUND TRIP
        47pjoycnsr  r.example:41641  connected  12.3 ms
        ");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let advice = crate::api::HealthEntry {
            code: "no_rendezvous".into(),
            message: "there is nobody to ask".into(),
            hint: "name one".into(),
        };
        let found = Netcheck { nat: "not known".into(), advice: vec![advice], ..Netcheck::default() };
        insta::assert_snapshot!(rendered(|page| show(page, &found)), @r"
          UDP        not known
          IPv4       no address
          IPv6       no address
          NAT        not known
          mapping    not known
          filtering  not known; it takes a server with two addresses to tell
          hairpin    not known
          gateway    not asked to let others in: port_mapping is off

          problem    there is nobody to ask
          hint       name one
        ");
    }

    #[test]
    fn a_gateway_that_gives_nothing_is_shown_with_what_it_said() {
        let check = |state, reason: Option<&str>| PortMappingCheck {
            state,
            gateway: "192.168.1.1".parse().ok(),
            reason: reason.map(str::to_owned),
            ..PortMappingCheck::default()
        };
        let text = |state, reason| port_mapping(&check(state, reason));
        assert_eq!(text(PortMappingState::NoGateway, None), "there is none");
        assert_eq!(text(PortMappingState::Asking, None), "192.168.1.1 is being asked to let others in");
        assert_eq!(text(PortMappingState::None, None), "192.168.1.1 does not let others in");
        assert_eq!(text(PortMappingState::None, Some("no\u{1b}")), "192.168.1.1 does not let others in: no\u{fffd}");
    }

    #[test]
    fn a_step_has_its_sign() {
        let found = |step| Netcheck {
            mapping: Some(MappingWord::EndpointDependent),
            port_step: Some(step),
            ..Netcheck::default()
        };
        assert_eq!(mapping(&found(2)), "another port for every destination, +2 each time");
        assert_eq!(mapping(&found(-1)), "another port for every destination, -1 each time");
        assert_eq!(mapping(&found(0)), "another port for every destination, without a pattern");
    }
}
