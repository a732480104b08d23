//! One host with many keys takes no more than its share.

use super::*;

fn small() -> Limits {
    Limits { clients: 3, records: 4, introductions: 2, channels: 3, channels_per_client: 2 }
}

#[test]
fn other_keys_from_a_clients_address_are_strangers() {
    let mut bench = Bench::new();
    let mut client = Agent::registered(1, &mut bench);
    let answered = (0..60).filter(|number| {
        let initiation = Agent::new(100 + number).initiation(&bench);
        !bench.put(address(1), &initiation).is_empty()
    });
    // One was spent on the client's own first handshake.
    assert_eq!(answered.count(), 19);
    assert_eq!(bench.counters.drop_handshake_rate.get(), 41);
    client.connect(&mut bench);
}

#[test]
fn in_a_table_full_of_one_network_others_find_a_place() {
    let mut bench = Bench::with(config(small()));
    let mut crowd = [1, 2, 3].map(|number| {
        let agent = Agent::registered_at(number, neighbour(9, number), &mut bench);
        bench.pass_time(1);
        agent
    });
    // The first is heard again, so the second is the longest silent.
    crowd[0].register(&mut bench);
    let further = Agent::new(4).initiation(&bench);
    assert_eq!(bench.put(neighbour(9, 4), &further), [], "one more of the crowd");
    let mut others = [5, 6].map(|number| Agent::registered(number, &mut bench));
    assert_eq!(bench.counters.drop_clients_evicted.get(), 2);
    let further = Agent::new(7).initiation(&bench);
    assert_eq!(bench.put(address(7), &further), [], "nobody has more than one");
    assert_eq!(bench.counters.drop_clients_full.get(), 2);
    assert_eq!(crowd.each_mut().map(|agent| agent.register(&mut bench).len()), [1, 0, 0]);
    assert_eq!(others.each_mut().map(|agent| agent.register(&mut bench).len()), [1, 1]);
}

#[test]
fn a_crowd_pushes_out_nobody_before_his_registration() {
    let mut bench = Bench::with(config(small()));
    let _crowd = [1, 2].map(|number| Agent::registered_at(number, neighbour(9, number), &mut bench));
    let mut newcomer = Agent::new(3);
    newcomer.connect(&mut bench);
    for number in 4..10 {
        let further = Agent::new(number).initiation(&bench);
        assert_eq!(bench.put(neighbour(9, number), &further), []);
    }
    assert_eq!(newcomer.register(&mut bench).len(), 1);
}

#[test]
fn one_sender_cannot_use_up_a_recipients_introductions() {
    let mut bench = Bench::new();
    let mut loud = Agent::registered(1, &mut bench);
    let mut quiet = Agent::registered(2, &mut bench);
    let _recipient = Agent::registered(3, &mut bench);
    let _other = Agent::registered(4, &mut bench);
    assert_eq!(loud.introduce_often(&mut bench, 3, 30), 4);
    assert_eq!(loud.introduce_often(&mut bench, 4, 1), 1, "another recipient has nothing to do with it");
    assert_eq!(quiet.introduce_often(&mut bench, 3, 1), 1);
    assert_eq!(bench.counters.drop_introduce_rate.get(), 26);
    bench.pass_time(1);
    assert_eq!(loud.introduce_often(&mut bench, 3, 5), 1);
}

#[test]
fn one_network_cannot_use_up_a_recipients_introductions() {
    let mut bench = Bench::new();
    let _recipient = Agent::registered(9, &mut bench);
    let taken = [1, 2, 3]
        .map(|number| Agent::registered_at(number, neighbour(1, number), &mut bench).introduce_often(&mut bench, 9, 4));
    assert_eq!(taken, [4, 2, 0]);
    assert_eq!(Agent::registered(5, &mut bench).introduce_often(&mut bench, 9, 4), 2);
    assert_eq!(bench.counters.introductions_delivered.get(), 8);
}
