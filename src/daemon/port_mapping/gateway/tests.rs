use super::fake::{Fake, Speaks};
use super::*;

const PORT: NonZeroU16 = NonZeroU16::new(41641).unwrap();

#[tokio::test]
async fn each_protocol_gives_keeps_and_takes_back() {
    for (speaks, protocol, lifetime) in [
        (Speaks::Pcp, MappingProtocol::Pcp, 7200),
        (Speaks::NatPmp, MappingProtocol::NatPmp, 7200),
        (Speaks::NatPmpOddly, MappingProtocol::NatPmp, 7200),
        (Speaks::Upnp, MappingProtocol::Upnp, 7200),
        (Speaks::UpnpPermanent, MappingProtocol::Upnp, 0),
        (Speaks::UpnpTaken, MappingProtocol::Upnp, 7200),
    ] {
        let fake = Fake::new(speaks).await;
        let mapping = ask(fake.ip, PORT).await.unwrap_or_else(|error| panic!("{speaks:?}: {error}"));
        assert_eq!((mapping.protocol(), mapping.external), (protocol, fake.external(PORT)), "{speaks:?}");
        assert_eq!((mapping.lifetime, fake.lifetime()), (LIFETIME, Some(lifetime)), "{speaks:?}");
        fake.forget();
        let mapping = mapping.renewed().await.unwrap_or_else(|error| panic!("{speaks:?}: {error}"));
        assert_eq!((fake.mapped(), mapping.external), (Some(PORT.get()), fake.external(PORT)), "{speaks:?}");
        mapping.give_back().await;
        assert_eq!(fake.mapped(), None, "{speaks:?}");
    }
}

#[tokio::test]
async fn what_nobody_can_use_is_given_back() {
    let fake = Fake::new(Speaks::PcpWithoutAddress).await;
    assert!(matches!(ask(fake.ip, PORT).await, Err(AskError::Useless { .. })));
    assert_eq!(fake.mapped(), None);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_gateways_words() {
    let fake = Fake::new(Speaks::Refusal).await;
    let Err(error) = ask(fake.ip, PORT).await else { panic!("it was given") };
    assert_eq!(error.to_string(), "the gateway refused: NAT-PMP(Server responded with code: Not authorized)");
}

#[tokio::test]
async fn a_mapping_is_got_elsewhere_when_its_protocol_is_switched_off() {
    let fake = Fake::new(Speaks::Pcp).await;
    let mapping = ask(fake.ip, PORT).await.unwrap();
    let now_upnp = fake.replaced(Speaks::Upnp).await;
    assert_eq!(mapping.renewed().await.unwrap().protocol(), MappingProtocol::Upnp);
    assert_eq!(now_upnp.mapped(), Some(PORT.get()));
}

#[tokio::test]
async fn silence_is_neither_of_the_three() {
    let fake = Fake::new(Speaks::Nothing).await;
    assert!(matches!(ask(fake.ip, PORT).await, Err(AskError::Unanswered)));
}

#[test]
fn of_a_gateways_words_not_all_are_kept() {
    let AskError::Refused(text) = refused(format!("a\n\u{1b}[31m{}", "é".repeat(1 << 20))) else { panic!("another") };
    assert_eq!((text.chars().count(), text.starts_with("a  [31mé")), (LONGEST_REASON, true));
}
