//! Databases and directories.

use ringway_tests::real::{MariaDb, wait_until};

use crate::{GATEWAY, with_machines};

const SERVERS: [&str; 3] = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];

/// Clients that know nothing of Sentinel are on the primary, also after Sentinel has made another
/// server the primary.
#[test]
fn redis_follows_sentinel() {
    with_machines(|mut on| {
        let own = on.file("");
        let quick = ["--dir", &own, "--save", "", "--repl-diskless-sync-delay", "0"];
        for at in SERVERS {
            let mut words = vec!["redis-server", "--bind", at];
            words.extend(quick);
            words.extend(["--protected-mode", "no", "--replica-announce-ip", at]);
            if at != SERVERS[0] {
                words.extend(["--replicaof", SERVERS[0], "6379"]);
            }
            on.serve(&[&format!("{at}:6379")], &words);
        }
        // Sentinel asks for replicas once in ten seconds.
        wait_until("the replicas follow", || {
            let primary = ["redis-cli", "-h", SERVERS[0], "info", "replication"];
            on.client(&primary).matches("state=online").count() == 2
        });
        for at in SERVERS {
            let conf = format!(
                "bind {at}\nport 26379\nprotected-mode no\ndir {own}\n\
                 sentinel announce-ip {at}\nsentinel monitor shop {} 6379 2\n\
                 sentinel failover-timeout shop 5000\n",
                SERVERS[0]
            );
            let conf = on.write(&format!("{at}.conf"), &conf);
            on.serve(&[&format!("{at}:26379")], &["redis-server", &conf, "--sentinel"]);
        }
        on.ringway("redis.toml");
        let redis = ["redis-cli", "-h", GATEWAY];
        let sentinel = [&redis[..], &["-p", "26379", "sentinel"]].concat();
        // Which server it is.
        let serves = || {
            let bound = on.try_to(&[&redis[..], &["config", "get", "bind"]].concat()).ok()?;
            on.try_to(&[&redis[..], &["set", "key", "value"]].concat())
                .ok()
                .filter(|said| said == "OK\n")?;
            bound.lines().nth(1).map(str::to_owned)
        };
        wait_until("the primary alone serves", || {
            (0..4).all(|_| serves().as_deref() == Some(SERVERS[0]))
        });
        wait_until("Sentinel knows the replicas", || {
            on.client(&[&sentinel[..], &["replicas", "shop"]].concat()).matches("flags").count()
                == 2
        });
        let failover = [&sentinel[..], &["failover", "shop"]].concat();
        wait_until("Sentinel is willing", || on.client(&failover) == "OK\n");
        wait_until("the new primary serves", || {
            serves().is_some_and(|bound| SERVERS[1..].contains(&bound.as_str()))
        });
        on.checked(&[("sentinel", 3)]);
    });
}

#[test]
fn mysql_to_the_server_that_can_be_written_to() {
    with_machines(|mut on| {
        let issued = ringway_tests::pki::Pki::new().issue(&["db.example.com"]);
        // The example's first server is the one that takes no writes.
        let databases = [("10.0.0.11:3306", "--read-only=1"), ("10.0.0.12:3306", "--read-only=0")]
            .map(|(at, setting)| {
                let issued = issued.clone();
                on.servers.run(move || {
                    MariaDb::start_at(at.parse().expect("an address"), &issued, &[setting])
                })
            });
        let password = on.write("mysql.password", "secret");
        on.ringway_as("mysql.toml", "/etc/ringway/mysql.password", &password);
        let ask = |query: &str| {
            let login = ["mariadb", "--no-defaults", "-h", GATEWAY, "-ume", "-psecret"];
            on.try_to(&[&login[..], &["-N", "-e", query]].concat())
        };
        wait_until("the right server alone answers", || {
            let answers = (0..4).map(|_| ask("select @@read_only, @@bind_address"));
            answers.into_iter().all(|said| said.is_ok_and(|said| said == "0\t10.0.0.12\n"))
        });
        drop(databases);
    });
}

/// Patroni decides who is the primary. Sessions follow, on both ports.
#[test]
fn postgresql_follows_patroni() {
    with_machines(|mut on| {
        let store = "http://10.0.0.21:2379";
        let (data, own) = (on.file("etcd"), on.file(""));
        let peers = ["--listen-peer-urls", "http://10.0.0.21:2380", "--unsafe-no-fsync"];
        let clients = ["--listen-client-urls", store, "--advertise-client-urls", store];
        let etcd = ["etcd", "--data-dir", &data];
        on.serve(&["10.0.0.21:2379"], &[&etcd[..], &clients, &peers].concat());
        let programs =
            ringway_tests::real::program("sh", &["-c", "ls -d /usr/lib/postgresql/*/bin"]);
        let programs = programs.lines().last().expect("PostgreSQL is installed").to_owned();
        // The third server of the example is down.
        for at in &SERVERS[..2] {
            let conf = on.write(&format!("{at}.yaml"), &patroni(at, &own, &programs));
            let user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
            // A change of user takes the signal away that ends the server with its parent.
            let words = ["--pdeathsig=KILL", "--", "patroni", &conf];
            let rest = format!("{at}:8008");
            on.serve(&[&rest], &[&["setpriv"][..], &user, &words].concat());
        }
        on.ringway("postgresql.toml");
        let leads = |port: &str, to: &str, role: &str| {
            let client = ["psql", "-h", GATEWAY, "-p", port, "-U", "postgres", "-AtX", "-c"];
            let ask = "select host(inet_server_addr()), pg_is_in_recovery()";
            on.try_to(&[&client[..], &[ask]].concat()) == Ok(format!("{to}|{role}\n"))
        };
        let both = |primary: &str, replica: &str| {
            leads("5432", primary, "f") && leads("5433", replica, "t")
        };
        let [one, two, _] = SERVERS;
        wait_until("a primary and a replica", || both(one, two) || both(two, one));
        let (primary, replica) = if both(one, two) { (one, two) } else { (two, one) };
        let url = format!("http://{primary}:8008/switchover");
        let order = format!("{{\"leader\": \"{primary}\", \"candidate\": \"{replica}\"}}");
        let switch = ["curl", "-sSf", "-X", "POST", "-d", &order, &url];
        wait_until("Patroni is willing", || on.try_to(&switch).is_ok());
        // When the other one is a replica again is Patroni's affair.
        wait_until("the port of the primary follows", || leads("5432", replica, "f"));
    });
}

fn patroni(at: &str, own: &str, programs: &str) -> String {
    format!(
        "scope: shop\nname: {at}\n\
         restapi: {{listen: '{at}:8008', connect_address: '{at}:8008'}}\n\
         etcd3: {{host: '10.0.0.21:2379'}}\n\
         bootstrap:\n  \
           dcs: {{ttl: 30, loop_wait: 1, retry_timeout: 10}}\n  \
           initdb: [{{encoding: UTF8}}, {{auth: trust}}, no-sync]\n  \
           pg_hba: [host all all 0.0.0.0/0 trust, host replication all 0.0.0.0/0 trust]\n\
         postgresql:\n  \
           listen: '{at}:5432'\n  connect_address: '{at}:5432'\n  \
           data_dir: {own}{at}\n  bin_dir: {programs}\n  pgpass: {own}{at}.pgpass\n  \
           authentication:\n    superuser: {{username: postgres, password: none}}\n    \
             replication: {{username: follower, password: none}}\n  \
           parameters: {{unix_socket_directories: '', fsync: 'off'}}\n"
    )
}

/// The first example that a newcomer runs.
#[test]
fn quick_start() {
    with_machines(|mut on| {
        for at in &SERVERS[..2] {
            let words = ["redis-server", "--bind", at, "--save", "", "--protected-mode", "no"];
            on.serve(&[&format!("{at}:6379")], &words);
        }
        let socket = on.file("admin.sock");
        on.ringway_as("quick-start.toml", "/run/ringway/admin.sock", &socket);
        assert_eq!(on.client(&["redis-cli", "-h", GATEWAY, "ping"]), "PONG\n");
        on.checked(&[("redis", 2)]);
    });
}

#[test]
fn ldap_to_slapd() {
    with_machines(|mut on| {
        on.certificate(&["10.0.0.2"]);
        let entry = "dn: dc=example,dc=com\nobjectClass: dcObject\nobjectClass: organization\n\
                     dc: example\no: Through the gateway\n";
        let entry = on.write("entry.ldif", entry);
        for at in &SERVERS[..2] {
            let folder = on.folder.file(at);
            std::fs::create_dir(&folder).expect("a directory");
            let conf = format!(
                "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\n\
                 moduleload back_mdb\nTLSCertificateFile {}\nTLSCertificateKeyFile {}\n\
                 database mdb\nsuffix dc=example,dc=com\ndirectory {}\n",
                on.file("server.pem"),
                on.file("server.key"),
                folder.display()
            );
            let conf = on.write(&format!("{at}.conf"), &conf);
            ringway_tests::real::program("slapadd", &["-f", &conf, "-l", &entry]);
            let (plain, tls) = (format!("{at}:389"), format!("{at}:636"));
            let urls = format!("ldap://{plain}/ ldaps://{tls}/");
            on.serve(&[&plain, &tls], &["slapd", "-d", "0", "-f", &conf, "-h", &urls]);
        }
        on.ringway("ldap.toml");
        let ca = format!("LDAPTLS_CACERT={}", on.file("ca.pem"));
        let base = ["-LLL", "-b", "dc=example,dc=com", "-s", "base", "o"];
        for (url, more) in [("ldap", &[][..]), ("ldap", &["-ZZ"][..]), ("ldaps", &[][..])] {
            let url = format!("{url}://{GATEWAY}/");
            let search = ["env", &ca, "ldapsearch", "-x", "-H", &url];
            let said = on.client(&[&search[..], more, &base].concat());
            assert!(said.contains("o: Through the gateway"), "{url} {more:?}: {said}");
        }
        on.checked(&[("ldap", 2), ("ldaps", 2)]);
    });
}
