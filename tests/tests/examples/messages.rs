//! Brokers, mail, logs: what carries messages.

use std::fs;

use ringway_tests::real::wait_until;

use crate::{CLIENT, GATEWAY, with_machines};

#[test]
fn mqtt_to_mosquitto() {
    with_machines(|mut on| {
        on.certificate(&["mqtt.example.com"]);
        for at in ["10.0.0.11", "10.0.0.12"] {
            let conf = format!(
                "user root\nallow_anonymous true\nlistener 1883 {at}\nlistener 8883 {at}\n\
                 certfile {}\nkeyfile {}\n",
                on.file("server.pem"),
                on.file("server.key")
            );
            let conf = on.write(&format!("{at}.conf"), &conf);
            let (plain, tls) = (format!("{at}:1883"), format!("{at}:8883"));
            on.serve(&[&plain, &tls], &["mosquitto", "-c", &conf]);
        }
        on.ringway("mqtt.toml");
        // What the broker keeps for the topic is found by a client that comes later only if it
        // comes to the same broker.
        let ca = on.file("ca.pem");
        let tls = ["-p", "8883", "--cafile", &ca, "--insecure"];
        for (topic, more) in [("plain", &[][..]), ("tls", &tls[..])] {
            let to = [&["-h", GATEWAY, "-V", "311", "-t", topic][..], more].concat();
            let publish = [&["mosquitto_pub", "-q", "1", "-r", "-m", "kept"][..], &to].concat();
            on.client(&publish);
            let subscribe = [&["mosquitto_sub", "-C", "1", "-W", "10"][..], &to].concat();
            assert_eq!(on.client(&subscribe), "kept\n", "{topic}");
        }
        on.checked(&[("brokers", 2), ("brokers-tls", 2)]);
    });
}

#[test]
fn amqp_to_rabbitmq() {
    with_machines(|mut on| {
        let nodes = ["10.0.0.11:5672", "10.0.0.12:5672", "10.0.0.13:5672"];
        let mut conf = String::from("loopback_users = none\n");
        for (nth, node) in nodes.iter().enumerate() {
            conf += &format!("listeners.tcp.{} = {node}\n", nth + 1);
        }
        let conf = on.write("rabbitmq.conf", &conf);
        let plugins = on.write("plugins", "[].\n");
        let own = on.file("");
        on.serve(
            &nodes,
            &[
                "env",
                "RABBITMQ_NODENAME=rabbit@localhost",
                "ERL_EPMD_ADDRESS=127.0.0.1",
                &format!("HOME={own}"),
                &format!("RABBITMQ_CONFIG_FILE={conf}"),
                &format!("RABBITMQ_ENABLED_PLUGINS_FILE={plugins}"),
                &format!("RABBITMQ_MNESIA_BASE={own}/mnesia"),
                &format!("RABBITMQ_LOG_BASE={own}/log"),
                "/usr/lib/rabbitmq/bin/rabbitmq-server",
            ],
        );
        on.ringway("amqp.toml");
        let url = format!("amqp://guest:guest@{GATEWAY}");
        on.client(&["amqp-declare-queue", "--url", &url, "-q", "orders"]);
        on.client(&["amqp-publish", "--url", &url, "-r", "orders", "-b", "through the gateway"]);
        let got = on.client(&["amqp-get", "--url", &url, "-q", "orders"]);
        assert_eq!(got, "through the gateway");
        on.checked(&[("rabbitmq", 3)]);
    });
}

#[test]
fn smtp_to_postfix() {
    with_machines(|mut on| {
        let conf = format!(
            "compatibility_level = 3.6\nqueue_directory = {own}spool\ndata_directory = {own}data\n\
             maillog_file = {own}log\nmaillog_file_prefixes = {own}\n\
             inet_interfaces = 10.0.0.11, 10.0.0.12\ninet_protocols = ipv4\n\
             myhostname = mx.example.com\nmydestination =\nmynetworks = 127.0.0.0/8\n\
             smtpd_upstream_proxy_protocol = haproxy\nsmtpd_peername_lookup = no\n\
             smtpd_relay_restrictions = reject_unauth_destination\n\
             virtual_mailbox_domains = example.com\nvirtual_mailbox_base = {own}\n\
             virtual_mailbox_maps = static:inbox/\nvirtual_uid_maps = static:65534\n\
             virtual_gid_maps = static:65534\nalias_maps =\n",
            own = on.file("")
        );
        let folder = on.folder.file("postfix");
        fs::create_dir(&folder).expect("a directory");
        let data = on.folder.file("data");
        for folder in [&data, &on.folder.file("spool")] {
            fs::create_dir(folder).expect("a directory");
        }
        on.write("postfix/main.cf", &conf);
        on.write("postfix/master.cf", MASTER);
        let own = folder.display().to_string();
        let start = format!(
            "chown postfix {}; postfix -c {own} check; \
             exec /usr/lib/postfix/sbin/master -d -c {own}",
            data.display()
        );
        let at = ["10.0.0.11:25", "10.0.0.12:25", "10.0.0.11:587", "10.0.0.12:587"];
        on.serve(&at, &["sh", "-c", &start]);
        on.ringway("smtp.toml");
        let mail = on.write("mail", "Subject: hello\r\n\r\nThrough the gateway.\r\n");
        let send = ["curl", "-sS", "--mail-from", "me@example.net", "--upload-file", &mail];
        for (port, count) in [("25", 1), ("587", 2)] {
            let url = format!("smtp://{GATEWAY}:{port}/client");
            on.client(&[&send[..], &["--mail-rcpt", "you@example.com", &url]].concat());
            // The server judges the client by its own address.
            let from = format!("[{CLIENT}]");
            wait_until("the mail is in the inbox", || {
                let inbox = fs::read_dir(on.folder.file("inbox/new")).into_iter().flatten();
                let mails = inbox.map(|mail| fs::read_to_string(mail.expect("a file").path()));
                let mails: Vec<_> = mails.map(|mail| mail.expect("a mail")).collect();
                assert!(mails.iter().all(|mail| mail.contains(&from)), "{mails:?}");
                mails.len() == count
            });
        }
        // To the gateway's own network it may relay, but not for this client.
        let url = format!("smtp://{GATEWAY}/client");
        let refused = on.try_to(&[&send[..], &["--mail-rcpt", "you@example.org", &url]].concat());
        assert!(refused.is_err_and(|said| said.contains("554")), "an open relay");
        on.checked(&[("mx", 2), ("submission", 2)]);
    });
}

const MASTER: &str = "\
smtp inet n - n - - smtpd
submission inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";

#[test]
fn syslog_to_rsyslog() {
    with_machines(|mut on| {
        let collectors = ["10.0.0.11", "10.0.0.12"];
        for at in collectors {
            let conf = format!(
                "module(load=\"imudp\")\nmodule(load=\"imtcp\")\n\
                 input(type=\"imudp\" address=\"{at}\" port=\"514\")\n\
                 input(type=\"imtcp\" address=\"{at}\" port=\"601\")\n\
                 *.* action(type=\"omfile\" file=\"{}\")\n",
                on.file(&format!("{at}.log"))
            );
            let conf = on.write(&format!("{at}.conf"), &conf);
            let listens = format!("{at}:601");
            on.serve(&[&listens], &["rsyslogd", "-n", "-i", "NONE", "-f", &conf]);
        }
        on.ringway("syslog.toml");
        let logged = |text: &str| {
            collectors.map(|at| {
                on.read(&format!("{at}.log")).lines().filter(|line| line.contains(text)).count()
            })
        };
        for line in ["by-udp-1", "by-udp-2", "by-udp-3"] {
            on.client(&["logger", "-n", GATEWAY, "-P", "514", "-d", line]);
        }
        // All lines of a source are in one place.
        wait_until("the lines by UDP", || logged("by-udp-").contains(&3));
        on.client(&["logger", "-n", GATEWAY, "-P", "601", "-T", "by-tcp"]);
        wait_until("the line by TCP", || logged("by-tcp").iter().sum::<usize>() == 1);
        on.checked(&[("collectors-udp", 2), ("collectors-tcp", 2)]);
    });
}

/// OpenSSL in the place of brokers: each has a certificate of its own.
#[test]
fn kafka_names_lead_to_their_brokers() {
    with_machines(|mut on| {
        let brokers = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
        for (nth, at) in brokers.iter().enumerate() {
            let name = format!("b{nth}.kafka.example.com");
            let (cert, key) = (on.file(&format!("{at}.pem")), on.file(&format!("{at}.key")));
            let of = ["-subj", &format!("/CN={name}"), "-days", "2", "-nodes"];
            let new = ["openssl", "req", "-x509", "-newkey", "ed25519", "-keyout", &key];
            on.client(&[&new[..], &["-out", &cert], &of].concat());
            let listens = format!("{at}:9094");
            let server = ["openssl", "s_server", "-www", "-accept", &listens];
            on.serve(&[&listens], &[&server[..], &["-cert", &cert, "-key", &key]].concat());
        }
        on.ringway("kafka.toml");
        let asks = |name: &str| {
            let to = format!("{GATEWAY}:9094");
            let said = on.try_to(&["openssl", "s_client", "-connect", &to, "-servername", name])?;
            let subject = said.lines().find(|line| line.starts_with("subject="));
            Ok::<_, String>(subject.expect("a certificate").to_owned())
        };
        for nth in 0..brokers.len() {
            let name = format!("b{nth}.kafka.example.com");
            let said = asks(&name).expect("a broker");
            assert!(said.contains(&name), "{said}");
        }
        let said = asks("bootstrap.kafka.example.com").expect("a broker");
        assert!(said.contains(".kafka.example.com"), "{said}");
        asks("b3.kafka.example.com").expect_err("there are three brokers");
        on.checked(&[("bootstrap", 3), ("broker-0", 1), ("broker-1", 1), ("broker-2", 1)]);
    });
}
