//! The contract with a real PostgreSQL server: notifications between processes, and an outage.

use super::*;

/// A PostgreSQL server for one test.
struct Server {
    process: std::process::Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        Self { process: Self::run(folder.path(), port), port, folder }
    }

    fn run(folder: &std::path::Path, port: u16) -> std::process::Child {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/scratch-postgres");
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut command = std::process::Command::new(script);
        command.arg(folder.join("pg")).arg(port.to_string()).stderr(log).spawn().unwrap()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let _ = std::fs::remove_file(self.folder.path().join("pg/data/postmaster.pid"));
    }

    fn config(&self) -> crate::config::model::Postgres {
        let url = format!("postgres://keylatch@127.0.0.1:{}/postgres", self.port);
        serde_json::from_value(serde_json::json!({ "url": url })).unwrap()
    }

    async fn open(&self) -> Arc<postgres::Postgres> {
        let files = Files::beside(std::path::Path::new("k.yaml"));
        Arc::new(postgres::Postgres::open(&self.config(), &files, true).await.unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_contract_notifies_other_processes_and_survives_an_outage() {
    let mut server = Server::start();
    contract(server.open().await).await;

    let open = async || {
        let store = Store::new(server.open().await, None, 1000, Duration::from_secs(60), &Registry::new());
        // They count as working until the first test; here the result of that test is awaited.
        store.metrics.notifications.set(0);
        store.follow();
        store
    };
    let (here, there) = (open().await, open().await);
    until("both replicas listen", || here.notifications_work() && there.notifications_work()).await;
    let bound = here.bind_first_use(first("shared", "10.0.0.1")).await.unwrap();
    assert_eq!(there.bind_first_use(first("shared", "10.0.0.2")).await.unwrap(), bound);
    assert!(there.cached(&id("shared")).is_some());
    here.change(id("shared"), Change { banned: Some(true), ..Change::default() }, operator()).await.unwrap();
    until("the ban has arrived", || there.cached(&id("shared")).is_none_or(|known| known.banned)).await;
    assert!(there.authoritative(id("shared"), None).await.unwrap().unwrap().banned);
    here.remove(id("shared"), None, operator()).await.unwrap();
    until("the removal has arrived", || there.cached(&id("shared")).is_none()).await;
    assert_eq!(there.authoritative(id("shared"), None).await.unwrap(), None);

    // The server dies: cached keys pass, others fail, soon without waiting. Then the server comes back.
    let known = there.bind_first_use(first("known", "10.0.0.1")).await.unwrap();
    server.kill();
    until("the loss is noticed", || there.cached(&id("known")).is_none()).await;
    assert_eq!(there.authoritative(id("known"), None).await.unwrap(), Some(known));
    for _ in 0..5 {
        assert!(there.bind_first_use(first("unknown", "10.0.0.1")).await.is_err());
    }
    assert_eq!(there.metrics.away.get(), 1, "further calls fail at once");
    server.process = Server::run(server.folder.path(), server.port);
    let back = std::time::Instant::now();
    while there.bind_first_use(first("unknown", "10.0.0.1")).await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
}

/// Waits for a condition of another task, at most ten seconds.
async fn until(what: &str, done: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: not within ten seconds");
        // Nothing notifies a test of a change inside another task, so the condition is polled.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
