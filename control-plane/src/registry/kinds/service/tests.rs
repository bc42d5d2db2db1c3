use super::*;

fn made(spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
    Services.default(&mut service);
    Services.prepare_create(&mut service);
    service
}

fn said(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_service_gets_its_defaults() {
    let mut service = made(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
    Services.allocate(&mut service, &|_| false, 0).expect("free");
    assert_eq!(
        service["spec"],
        json!({"selector": {"app": "web"},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "clusterIPs": ["10.96.1.1"], "clusterIP": "10.96.1.1"})
    );
    assert_eq!(said(Services.validate(&service)), [] as [&str; 0]);
    assert_eq!(Services.claims(&service), ["serviceips/10.96.1.1"]);
}

#[test]
fn taken_values_are_stepped_over() {
    let mut service = made(json!({"type": "NodePort", "ports": [
        {"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53}, {"name": "c", "port": 80}]}));
    let taken = |claim: &str| matches!(claim, "serviceips/10.96.1.1" | "nodeports/30086");
    Services.allocate(&mut service, &taken, 0).expect("free");
    assert_eq!(service["spec"]["clusterIP"], "10.96.1.2");
    let nodes: Vec<&Value> = list(&service, "/spec/ports").iter().map(|p| &p["nodePort"]).collect();
    assert_eq!(nodes, [&json!(30_087), &json!(30_087), &json!(30_088)]);
    assert_eq!(Services.claims(&service), ["serviceips/10.96.1.2", "nodeports/30087", "nodeports/30088"]);
    assert!(Services.allocate(&mut made(json!({"ports": [{"port": 1}]})), &|_| true, 5).is_err());
}

#[test]
fn headless_and_external_names_get_no_address() {
    let headless = made(json!({"clusterIP": "None", "selector": {"a": "b"}}));
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    assert!(Services.claims(&headless).is_empty());
    let free = made(json!({"clusterIP": "None"}));
    assert_eq!(
        (&free["spec"]["ipFamilies"], &free["spec"]["ipFamilyPolicy"]),
        (&json!(["IPv4", "IPv6"]), &json!("RequireDualStack"))
    );
    assert!(said(Services.validate(&free)).is_empty());
    let named = made(json!({"type": "ExternalName", "externalName": "example.com"}));
    assert_eq!(
        named["spec"],
        json!({"type": "ExternalName", "externalName": "example.com", "sessionAffinity": "None"})
    );
    assert!(said(Services.validate(&named)).is_empty());
}

#[test]
fn faults_are_told_in_the_words_of_the_api() {
    let faults = |spec| said(Services.validate(&made(spec)));
    assert_eq!(faults(json!({})), ["spec.ports: Required value"]);
    assert_eq!(
        faults(json!({"ports": [{"port": 80}, {"port": 80, "name": "b", "nodePort": 30001}]})),
        [
            "spec.ports[0].name: Required value",
            "spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":80,\"targetPort\":0}",
        ]
    );
    assert_eq!(
        faults(json!({"type": "NodePort", "ports": [{"port": 0, "targetPort": "x", "nodePort": 80}]})),
        [
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ]
    );
    assert_eq!(
        faults(json!({"type": "Odd", "ports": [{"port": 80}]})),
        [
            "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""
        ]
    );
    assert_eq!(
        faults(json!({"clusterIP": "1.2.3.4", "ports": [{"port": 80}]})),
        [
            "spec.clusterIPs: Invalid value: [\"1.2.3.4\"]: failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/16"
        ]
    );
    assert_eq!(
        Services.claimed("nodeports/30080").to_string(),
        "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
    );
}

#[test]
fn an_update_keeps_what_was_allocated() {
    let mut old = made(json!({"type": "NodePort", "ports": [{"port": 80}]}));
    Services.allocate(&mut old, &|_| false, 7).expect("free");
    let mut new = made(json!({"type": "NodePort", "ports": [{"port": 80}]}));
    Services.prepare_update(&mut new, &old);
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);

    let mut plain = old.clone();
    plain["spec"]["type"] = "ClusterIP".into();
    Services.prepare_update(&mut plain, &old);
    assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(plain["spec"].get("externalTrafficPolicy"), None);
    assert!(said(Services.validate(&plain)).is_empty());

    let mut moved = old.clone();
    moved["spec"]["clusterIP"] = "10.96.9.9".into();
    Services.prepare_update(&mut moved, &old);
    assert_eq!(
        said(Services.validate_update(&moved, &old)),
        ["spec.clusterIPs[0]: Invalid value: [\"10.96.9.9\"]: may not change once set"]
    );
}

#[test]
fn columns() {
    let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}});
    assert_eq!((ports(&service).as_str(), external(&service).as_str()), ("80:30080/TCP", "<none>"));
    assert_eq!(external(&json!({"spec": {"type": "LoadBalancer"}})), "<pending>");
}

const BOTH: [&str; 2] = ["IPv4", "IPv6"];

/// A Service in a cluster of both families, with addresses.
fn dual(spec: Value, old: Option<&Value>) -> Value {
    let mut service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
    Services.default(&mut service);
    if let Some(old) = old {
        update::carry_over(&mut service, old);
    }
    update::twin_addresses(&mut service);
    families::settle(&BOTH, &mut service, old);
    allocate::fill_in(&dual_ranges(), &mut service, &|_| false, 0).expect("free");
    service
}

fn dual_ranges() -> ServiceRanges {
    let addresses = ["10.96.0.0/16", "fd00:10:96::/112"].map(|range| range.parse().expect("a range")).to_vec();
    ServiceRanges { addresses, node_ports: (30_000, 32_767) }
}

fn families_of(service: &Value) -> (Value, Value, Value) {
    let spec = &service["spec"];
    (spec["ipFamilyPolicy"].clone(), spec["ipFamilies"].clone(), spec["clusterIPs"].clone())
}

#[test]
fn families_follow_the_policy() {
    let ports = json!([{"port": 80}]);
    let (four, six) = ("10.96.1.1", "fd00:10:96::101");
    for (more, wanted) in [
        (json!({}), ("SingleStack", json!(["IPv4"]), json!([four]))),
        (json!({"ipFamilies": ["IPv6"]}), ("SingleStack", json!(["IPv6"]), json!([six]))),
        (
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            ("PreferDualStack", json!(["IPv4", "IPv6"]), json!([four, six])),
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            ("RequireDualStack", json!(["IPv6", "IPv4"]), json!([six, four])),
        ),
        (
            json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "fd00:10:96::7"}),
            ("PreferDualStack", json!(["IPv6", "IPv4"]), json!(["fd00:10:96::7", four])),
        ),
        (
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "RequireDualStack"}),
            ("RequireDualStack", json!(["IPv4", "IPv6"]), json!(["None"])),
        ),
    ] {
        let mut spec = json!({"ports": ports});
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let service = dual(spec, None);
        assert_eq!(families_of(&service), (wanted.0.into(), wanted.1, wanted.2), "{more}");
        assert_eq!(said(families::refused(&BOTH, &service)), [] as [&str; 0]);
        assert_eq!(said(allocate::out_of_range(&dual_ranges(), &service)), [] as [&str; 0]);
    }
    let alone = made(json!({"ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack"}));
    assert_eq!(alone["spec"]["ipFamilies"], json!(["IPv4"]));
    assert!(said(Services.validate(&alone)).is_empty(), "one family is enough for it");
}

#[test]
fn an_address_comes_and_goes_on_a_clients_word_alone() {
    let single = dual(json!({"ports": [{"port": 80}]}), None);
    let require = |spec: &Value, policy: &str| {
        let mut spec = spec.clone();
        spec["ipFamilyPolicy"] = policy.into();
        spec
    };
    let both = dual(require(&single["spec"], "RequireDualStack"), Some(&single));
    assert_eq!(both["spec"]["clusterIPs"], json!(["10.96.1.1", "fd00:10:96::101"]));
    assert_eq!(said(Services.validate_update(&both, &single)), [] as [&str; 0]);
    // A client that knows neither policy nor the plural changes nothing.
    let old_client = dual(json!({"ports": [{"port": 81}], "clusterIP": "10.96.1.1"}), Some(&both));
    assert_eq!(families_of(&old_client), families_of(&both));
    let back = dual(require(&both["spec"], "SingleStack"), Some(&both));
    assert_eq!(families_of(&back), families_of(&single));
    assert_eq!(said(Services.validate_update(&back, &both)), [] as [&str; 0]);
    // Made when the cluster had one family; that it has two now is nobody's wish.
    let mut prefers = single.clone();
    prefers["spec"]["ipFamilyPolicy"] = "PreferDualStack".into();
    assert_eq!(families_of(&dual(prefers["spec"].clone(), Some(&prefers))), families_of(&prefers));
    let mut released = both["spec"].clone();
    released["ipFamilies"] = json!(["IPv4"]);
    assert_eq!(
        said(Services.validate_update(&dual(released, Some(&both)), &both)),
        [
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family"
        ]
    );
}

#[test]
fn families_that_cannot_be_are_refused_in_upstreams_words() {
    let faults = |cluster: &[&str], more: Value| {
        let mut service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
        service["spec"].as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        Services.default(&mut service);
        update::twin_addresses(&mut service);
        families::settle(cluster, &mut service, None);
        said(families::refused(cluster, &service))
    };
    let (a, b, six) = ("10.96.0.7", "10.96.0.8", "fd00:10:96::7");
    let many = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
    for (cluster, spec, wanted) in [
        (1, json!({"ipFamilyPolicy": "RequireDualStack"}), vec![
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services".to_owned(),
        ]),
        (1, json!({"ipFamilies": ["IPv6"]}), vec![
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster".to_owned(),
        ]),
        (1, json!({"clusterIP": six}), vec![
            format!("spec.clusterIPs[0]: Invalid value: [\"{six}\"]: IPv6 is not configured on this cluster"),
        ]),
        (2, json!({"ipFamilies": ["IPv4", "IPv4"]}), vec!["spec.ipFamilies[1]: Duplicate value: \"IPv4\"".to_owned()]),
        (2, json!({"ipFamilies": ["IPv5"], "ipFamilyPolicy": "Odd"}), vec![
            "spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"".to_owned(),
            "spec.ipFamilyPolicy: Unsupported value: \"Odd\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"".to_owned(),
        ]),
        (2, json!({"ipFamilies": ["IPv4", "IPv6"]}), vec![
            format!("spec.ipFamilyPolicy: Invalid value: \"SingleStack\": {many} IP families are specified"),
        ]),
        (2, json!({"clusterIP": a, "clusterIPs": [a, six]}), vec![
            format!("spec.ipFamilyPolicy: Invalid value: \"SingleStack\": {many} cluster IPs are specified"),
        ]),
        (2, json!({"clusterIP": six, "ipFamilies": ["IPv4"]}), vec![
            format!("spec.clusterIPs[0]: Invalid value: \"{six}\": expected an IPv4 value as indicated by `ipFamilies[0]`"),
        ]),
        (2, json!({"clusterIPs": [a]}), vec![
            format!("spec.clusterIPs: Invalid value: [\"{a}\"]: must be empty when `clusterIP` is not specified"),
        ]),
        (2, json!({"clusterIP": b, "clusterIPs": [a]}), vec![
            format!("spec.clusterIPs: Invalid value: [\"{a}\"]: first value must match `clusterIP`"),
        ]),
        (2, json!({"clusterIP": a, "clusterIPs": [a, b]}), vec![
            format!("spec.clusterIPs: Invalid value: [\"{a}\",\"{b}\"]: may specify no more than one IP for each IP family"),
        ]),
        (2, json!({"clusterIP": a, "clusterIPs": [a, six, b]}), vec![
            format!("spec.clusterIPs: Invalid value: [\"{a}\",\"{six}\",\"{b}\"]: may only hold up to 2 values"),
        ]),
        (2, json!({"clusterIP": "None", "clusterIPs": ["None", a]}), vec![
            format!("spec.clusterIPs: Invalid value: [\"None\",\"{a}\"]: 'None' must be the first and only value"),
        ]),
        (2, json!({"clusterIP": a, "clusterIPs": [a, "None"]}), vec![
            "spec.clusterIPs[1]: Invalid value: \"None\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned(),
        ]),
    ] {
        assert_eq!(faults(&BOTH[..cluster], spec.clone()), wanted, "{spec}");
    }
    let mut plural = made(json!({"ports": [{"port": 80}], "clusterIPs": [a]}));
    Services.allocate(&mut plural, &|_| false, 0).expect("nothing to do");
    assert_eq!(said(Services.validate(&plural)).len(), 1, "no allocation heals it: {plural}");
}

#[test]
fn a_second_address_goes_by_the_policys_word_alone() {
    let both = dual(json!({"ports": [{"port": 80}], "ipFamilyPolicy": "RequireDualStack"}), None);
    let mut one = both["spec"].clone();
    one["clusterIPs"] = json!([one["clusterIP"]]);
    let one = dual(one, Some(&both));
    assert_eq!(list(&one, "/spec/clusterIPs").len(), 1, "no other takes its place");
    let why = "must be 'SingleStack' to release the secondary cluster IP";
    let said = said(Services.validate_update(&one, &both));
    assert_eq!(said, [format!("spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": {why}")]);
}
