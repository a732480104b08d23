use super::*;

const S: Duration = Duration::from_secs(1);

fn schedule() -> (Schedule, Instant) {
    let start = Instant::now();
    (Schedule::new(start), start)
}

/// An attempt when one is due, without success; what time it is then.
fn fail(schedule: &mut Schedule) -> Instant {
    let now = schedule.due.unwrap();
    schedule.begun(now);
    schedule.failed(now, None);
    now
}

#[test]
fn silence_is_asked_ever_less_often() {
    let (mut schedule, start) = schedule();
    let times: Vec<u64> = (0..9).map(|_| (fail(&mut schedule) - start).as_secs()).collect();
    let waits: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits, [10, 60, 300, 1800, 7200, 21600, 21600, 21600]);
}

#[test]
fn a_mapping_is_renewed_at_half_its_life() {
    let (mut schedule, start) = schedule();
    fail(&mut schedule);
    fail(&mut schedule);
    schedule.succeeded(start, 7200 * S);
    assert_eq!(schedule.due, Some(start + 3600 * S));
    schedule.succeeded(start, 100 * S);
    assert_eq!(schedule.due, Some(start + SPACING), "never more than once a minute");
    schedule.failed(start, None);
    assert_eq!(schedule.due, Some(start + RETRIES[0]), "what failed before is forgotten");
}

#[test]
fn the_end_of_a_mapping_is_not_slept_through() {
    let (mut schedule, start) = schedule();
    schedule.failures = RETRIES.len();
    schedule.failed(start, Some(start + 600 * S));
    assert_eq!(schedule.due, Some(start + 600 * S));
    schedule.failed(start, Some(start + S));
    assert_eq!(schedule.due, Some(start + SPACING));
}

#[test]
fn another_gateway_is_asked_at_once_but_a_flapping_network_is_not_chased() {
    let (mut schedule, _) = schedule();
    let last = (0..6).map(|_| fail(&mut schedule)).last().unwrap();
    let later = last + 3600 * S;
    schedule.network_changed(later, true);
    assert_eq!(schedule.due, Some(later));
    let mut attempts = 0;
    for second in 0..600 {
        let now = later + second * S;
        schedule.network_changed(now, false);
        if schedule.due.is_some_and(|due| due <= now) {
            schedule.begun(now);
            schedule.failed(now, None);
            attempts += 1;
        }
    }
    assert_eq!(attempts, 11, "at once, after 10 s, and once a minute");
}

#[test]
fn without_a_gateway_nothing_is_due() {
    let (mut schedule, start) = schedule();
    schedule.stop();
    assert_eq!(schedule.due, None);
    schedule.network_changed(start, true);
    assert_eq!(schedule.due, Some(start));
}

#[cfg(target_os = "linux")]
mod against_a_gateway {
    use std::net::IpAddr;

    use super::super::gateway::fake::{Fake, Speaks};
    use super::*;
    use crate::api::MappingProtocol;

    const PORT: NonZeroU16 = NonZeroU16::new(4321).unwrap();

    async fn told(found: &mut watch::Receiver<PortMappingCheck>, state: PortMappingState) -> PortMappingCheck {
        let wait = found.wait_for(|check| check.state == state);
        tokio::time::timeout(20 * S, wait).await.expect("told in time").unwrap().clone()
    }

    #[tokio::test]
    async fn a_mapping_is_told_and_given_back() {
        let fake = Fake::new(Speaks::Pcp).await;
        let (mapper, mut found) = PortMapper::start(PORT, Some(fake.ip));
        let check = told(&mut found, PortMappingState::Mapped).await;
        assert_eq!((check.protocol, check.address), (Some(MappingProtocol::Pcp), Some(fake.external(PORT))));
        assert_eq!(check.gateway, Some(IpAddr::V4(fake.ip)));
        assert_eq!(fake.mapped(), Some(PORT.get()));
        mapper.stop().await;
        assert_eq!(fake.mapped(), None);
    }

    #[tokio::test]
    async fn another_gateway_is_another_start() {
        let (old, new) = (Fake::new(Speaks::NatPmp).await, Fake::new(Speaks::Pcp).await);
        let (mapper, mut found) = PortMapper::start(PORT, None);
        assert_eq!(found.borrow().state, PortMappingState::NoGateway);
        mapper.network_changed(Some(old.ip), false);
        assert_eq!(told(&mut found, PortMappingState::Mapped).await.protocol, Some(MappingProtocol::NatPmp));
        mapper.network_changed(None, true);
        told(&mut found, PortMappingState::NoGateway).await;
        mapper.network_changed(Some(new.ip), true);
        assert_eq!(told(&mut found, PortMappingState::Mapped).await.protocol, Some(MappingProtocol::Pcp));
        mapper.stop().await;
        assert_eq!((old.mapped(), new.mapped()), (Some(PORT.get()), None), "the one out of reach is left alone");
    }

    #[tokio::test]
    async fn a_gateway_that_gives_nothing_is_named_with_the_reason() {
        let fake = Fake::new(Speaks::Nothing).await;
        let (mapper, mut found) = PortMapper::start(PORT, Some(fake.ip));
        let check = told(&mut found, PortMappingState::None).await;
        assert_eq!(check.reason.as_deref(), Some("the gateway answers neither PCP nor NAT-PMP nor UPnP"));
        assert_eq!((check.address, check.gateway), (None, Some(IpAddr::V4(fake.ip))));
        mapper.stop().await;
    }
}
