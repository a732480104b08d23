use super::*;
use crate::identity::IdentityKey;
use crate::node::stored_for_tests;

fn row(seed: u8) -> StoredPeer {
    stored_for_tests(&IdentityKey::from_seed([seed; 32]))
}

#[test]
fn what_is_committed_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let mut store = Store::open(path.clone()).unwrap();
    let secret = TunnelSecret::from_bytes([7; 32]);
    let mut changes = Changes::default();
    changes.port(4711);
    changes.sequence(9);
    changes.tunnel_secret(&secret);
    changes.ipv4_range("198.18.0.0/15".parse().unwrap());
    changes.peer(row(1).id(), Some(&row(1)));
    changes.peer(row(2).id(), Some(&row(2)));
    store.commit(changes).unwrap();
    let mut changes = Changes::default();
    changes.peer(row(2).id(), None);
    store.commit(changes).unwrap();
    drop(store);

    let loaded = Store::open(path.clone()).unwrap().load().unwrap();
    assert_eq!((loaded.port, loaded.record_sequence, loaded.unreadable), (Some(4711), 9, 0));
    assert_eq!(loaded.tunnel_secret.unwrap().public(), secret.public());
    assert_eq!(loaded.ipv4_range, "198.18.0.0/15".parse().ok());
    assert_eq!(loaded.peers, [row(1)]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_a_rendezvous_server_keeps_comes_back_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path().join("state.redb")).unwrap();
    let introduction = |number| StoredIntroduction {
        number,
        recipient: row(1).id(),
        sender: row(2).id(),
        observed: "192.0.2.1:9".parse().unwrap(),
        until_ms: 5,
        sealed: vec![1],
    };
    let mut changes = Changes::default();
    changes.record(row(1).id(), Some(&row(1).record));
    changes.record(row(2).id(), Some(&row(2).record));
    for number in [1, 256, 2] {
        changes.introduction(number, Some(&introduction(number)));
    }
    let mut later = Changes::default();
    later.record(row(2).id(), None);
    later.introduction(1, None);
    changes.extend(later);
    store.commit(changes).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.records.as_slice(), loaded.unreadable), ([row(1).record].as_slice(), 0));
    assert_eq!(loaded.introductions, [introduction(2), introduction(256)]);
}

#[test]
fn an_empty_state_is_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let loaded = Store::open(directory.path().join("state.redb")).unwrap().load().unwrap();
    assert!(loaded.peers.is_empty() && loaded.port.is_none() && loaded.tunnel_secret.is_none());
}

#[test]
fn damage_is_told_and_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    std::fs::write(&path, b"this is not a database, and it is somebody's file").unwrap();
    let error = Store::open(path.clone()).map(|_| ()).unwrap_err();
    assert_eq!(error.code, ErrorCode::StateDamaged);
    assert!(std::fs::read(path).unwrap().starts_with(b"this is not"));
}

#[test]
fn rows_that_cannot_be_read_are_left_out_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let mut store = Store::open(path).unwrap();
    let mut changes = Changes::default();
    changes.peer(row(1).id(), Some(&row(1)));
    for (table, key, row) in
        [(Table::Peers, 2, vec![1, 2, 3]), (Table::Peers, 3, vec![99]), (Table::Records, 1, vec![])]
    {
        changes.rows.insert((table, vec![key; 32]), Some(row));
    }
    store.commit(changes).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.peers.len(), loaded.unreadable), (1, 3));
}

#[test]
fn what_the_disk_does_not_take_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gone").join("state.redb");
    let mut store = Store { path: path.clone(), database: None, waiting: Changes::default() };
    let mut changes = Changes::default();
    changes.port(5);
    assert!(store.commit(changes).is_err());
    assert!(store.is_behind());
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    assert!(store.retry().is_err(), "the state of others is not replaced by a part of it");
    drop(Store::open(path).unwrap());
    store.retry().unwrap();
    assert!(!store.is_behind());
    assert_eq!(store.load().unwrap().port, Some(5));
}
