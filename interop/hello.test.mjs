// The page of examples/hello in headless Chromium, as its users see it. Run it
// with interop/run. Each test's name is a promise.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, afterEach, before, beforeEach } from "node:test";

import { newContext, startBrowser, startHello, test, until } from "./harness.mjs";

let browser, hello, context;

before(async () => {
	browser = await startBrowser();
});
after(() => browser?.close());
beforeEach(async () => {
	hello = await startHello();
	context = await newContext(browser);
});
afterEach(async () => {
	await context?.close();
	await hello?.stop();
	await hello?.stop("SIGKILL");
});

/** A tab that is connected and logged in. */
async function open(user = "", options) {
	const page = await context.newPage(options);
	await page.goto(hello.url + (user && `/?user=${user}`));
	await connected(page);
	return page;
}

const connected = (page) => page.waitForSelector('#state[data-state="open"]');
const numbers = (page) => page.evaluate(() => [document.querySelector("#x").textContent, document.querySelector("#y").textContent].join());
const device = (page) => page.textContent("#device");
const messages = (page) => page.$$eval("#messages li[data-event]", (list) => list.map((li) => [li.dataset.event, li.querySelector("code").textContent]));

/** The receipt's rows: { device: { user, status, self } }. */
const rows = (page) =>
	page.$$eval("#rows tr", (list) => Object.fromEntries(list.map(({ dataset: d }) => [d.device, { user: d.user, status: d.status, self: d.self }])));

/** Waits until the numbers are others, twice. */
async function numbersChange(page) {
	for (let i = 0; i < 2; i++) {
		const old = await numbers(page);
		await until("x and y change", async () => (await numbers(page)) !== old);
	}
	assert.match(await numbers(page), /^\d{1,2},\d{1,2}$/);
}

/** Fills in the form and pushes. Returns the answer's status and the receipt's rows. */
async function push(page, { user, event = "note", data = '{"text":"hi"}', ack = "auto" }) {
	if (user) await page.fill("#user", user);
	await page.fill("#event", event);
	await page.fill("#data", data);
	await page.selectOption("#ack", ack);
	await page.click("#send");
	await page.waitForSelector("#summary[data-code]");
	await page.waitForSelector('#receipt[aria-busy="false"]');
	return { code: Number(await page.getAttribute("#summary", "data-code")), rows: await rows(page) };
}

test("x and y change each second, by themselves", async () => {
	const page = await open();
	assert.equal(await page.textContent("#me"), "alice");
	await numbersChange(page);
	assert.deepEqual(context.complaints, []);
});

test("a push to alice shows in both of alice's tabs and in nobody else's", async () => {
	const [one, two, bob] = [await open(), await open("alice"), await open("bob")];
	const { code, rows } = await push(one, { event: "order", data: '{"n":[1,"<b>&"]}' });
	assert.equal(code, 200);
	assert.deepEqual(rows, {
		[await device(one)]: { user: "alice", status: "acked", self: "true" },
		[await device(two)]: { user: "alice", status: "acked", self: "false" },
	});
	assert.equal(await one.textContent("#rows .self"), "this tab");
	for (const tab of [one, two]) {
		await tab.waitForSelector("#messages li[data-event=order]");
		assert.deepEqual(await messages(tab), [["order", '{"n":[1,"<b>&"]}']]);
	}

	// A second push, to bob: what he was pushed before would be above it.
	assert.equal((await push(two, { user: "bob", event: "greeting" })).code, 200);
	await bob.waitForSelector("#messages li[data-event=greeting]");
	assert.deepEqual(await messages(bob), [["greeting", '{"text":"hi"}']]);
	assert.equal((await messages(one)).length, 1);
	assert.deepEqual(context.complaints, []);
});

test("each row has user, device and connection, protocol, status and latency", async () => {
	const page = await open();
	await push(page, { ack: "" });
	const cells = await page.$$eval("#rows td", (list) => list.map((td) => td.textContent.replace(/\s+/g, " ").trim()));
	assert.equal(cells.length, 5);
	const [user, dev, protocol, status, latency] = cells;
	assert.equal(user, "alice");
	assert.match(dev, /^tab-[0-9a-f]{4} this tab ?[0-9a-f]{16}$/);
	assert.equal(protocol, "push.json");
	assert.equal(status, "sent");
	assert.match(latency, /^[\d.]+ (ms|s)$/);
});

for (const ack of ["auto", "biz"]) {
	test(`with ${ack} ack, the tab whose box is off times out, and only that one`, async () => {
		const [one, two] = [await open(), await open()];
		await two.uncheck("#acks");
		const { code, rows } = await push(one, { ack });
		assert.equal(code, 200);
		assert.equal(rows[await device(one)].status, "acked");
		assert.equal(rows[await device(two)].status, "timeout");
		assert.equal((await messages(two)).length, 1, "the push arrived all the same");

		await two.check("#acks");
		const again = await push(one, { ack });
		assert.deepEqual(Object.values(again.rows).map((r) => r.status), ["acked", "acked"]);
		assert.deepEqual(context.complaints, []);
	});
}

test("a push that no tab acks is a 504", async () => {
	const page = await open();
	await page.uncheck("#acks");
	const { code, rows } = await push(page, {});
	assert.equal(code, 504);
	assert.equal(rows[await device(page)].status, "timeout");
});

test("a push to somebody who is not there is a 404 that says so", async () => {
	const page = await open();
	const { code, rows } = await push(page, { user: "carol" });
	assert.equal(code, 404);
	assert.deepEqual(rows, {});
	assert.match(await page.textContent("#summary"), /carol is offline/);
});

test("a closed tab leaves the receipt", async () => {
	const [one, two] = [await open(), await open()];
	assert.equal(Object.keys((await push(one, {})).rows).length, 2);
	await two.close();
	await until("the program noticed", async () => (await hello.stats()).online.alice === 1);
	const { code, rows } = await push(one, {});
	assert.equal(code, 200);
	assert.deepEqual(Object.keys(rows), [await device(one)]);
});

test("the links open another tab as alice or as bob", async () => {
	const page = await open();
	for (const user of ["alice", "bob"]) {
		const [other] = await Promise.all([context.waitForEvent("page"), page.click(`#open-${user}`)]);
		await connected(other);
		assert.equal(await other.textContent("#me"), user);
	}
	await page.waitForSelector('#users li[data-user=alice][data-devices="2"]');
	await page.waitForSelector('#users li[data-user=bob][data-devices="1"]');
	await page.click("#users li[data-user=bob] button");
	assert.equal(await page.inputValue("#user"), "bob");
});

test("the page survives a restart of the program", async () => {
	const page = await open();
	await numbersChange(page);
	await hello.stop();
	await page.waitForSelector('#state[data-state="waiting"]');
	const thrown = context.complaints.filter((text) => !/ERR_CONNECTION_REFUSED|WebSocket|failed$/.test(text));
	assert.deepEqual(thrown, []);
	hello = await startHello(hello.address);
	await connected(page);
	await numbersChange(page);
	const { code, rows } = await push(page, {});
	assert.equal(code, 200);
	assert.deepEqual(rows, { [await device(page)]: { user: "alice", status: "acked", self: "true" } });
});

test("the page survives a crash of the program", async () => {
	const page = await open();
	await numbersChange(page);
	await hello.stop("SIGKILL");
	await page.waitForSelector('#state[data-state="waiting"]');
	hello = await startHello(hello.address);
	await connected(page);
	await numbersChange(page);
});

test("what one tab says, every tab reads", async () => {
	const [alice, bob] = [await open(), await open("bob")];
	await bob.fill("#say", "good morning");
	await bob.press("#say", "Enter");
	await bob.waitForSelector("#said:not(:empty)");
	assert.equal(await bob.textContent("#said"), "Reached 2 tabs.");
	for (const tab of [alice, bob]) {
		await tab.waitForSelector("#messages li[data-event=said]");
		assert.deepEqual(await messages(tab), [["said", '{"user":"bob","text":"good morning"}']]);
	}
	assert.deepEqual(context.complaints, []);
});

test("curl's push, by the line the page shows, arrives", async () => {
	const page = await open();
	await page.fill("#data", `"it's"`);
	const line = await page.textContent("#curl");
	assert.equal(line, `curl -d '"it'\\''s"' '${hello.url}/push?user=alice&event=note&ack=auto'`);
	assert.equal((await hello.push({ user: "alice", event: "note", ack: "auto" }, "it's")).receipt.acked, 1);
	await page.waitForSelector("#messages li[data-event=note]");
	assert.deepEqual(await messages(page), [["note", `"it's"`]]);
});

test("the form works from the keyboard", async () => {
	const page = await open();
	for (const field of ["user", "event", "data"]) {
		await page.evaluate(() => delete document.querySelector("#summary").dataset.code);
		await page.focus("#" + field);
		await page.keyboard.press("Enter");
		await page.waitForSelector('#summary[data-code="200"]');
	}
	assert.equal((await messages(page)).length, 3);

	// Tab alone reaches every control, in the order they stand in.
	await page.evaluate(() => document.activeElement.blur());
	const order = [];
	await page.focus("#open-alice");
	for (let i = 0; i < 25 && order.at(-1) !== "acks"; i++) {
		order.push(await page.evaluate(() => document.activeElement.id));
		await page.keyboard.press("Tab");
	}
	assert.deepEqual(order, ["open-alice", "open-bob", "user", "event", "ack", "data", "send", "acks"]);

	// Data that is no JSON is not sent.
	await page.fill("#data", "{no");
	await page.press("#data", "Enter");
	assert.match(await page.$eval("#data", (input) => input.validationMessage), /no JSON/);
	await page.fill("#data", "1");
	await page.press("#data", "Enter");
	await page.waitForSelector("#messages li:nth-child(4)");
	assert.equal((await hello.stats()).deliveries.acked, 4);
});

test("every control has a name, and every heading its order", async () => {
	const page = await open();
	const unnamed = await page.$$eval("input, select, button, table, [tabindex]", (list) =>
		list
			.filter((node) => {
				const by = node.getAttribute("aria-labelledby");
				const name = node.getAttribute("aria-label") || (by && document.getElementById(by)?.textContent) || node.labels?.[0]?.textContent || node.textContent;
				return !name?.trim();
			})
			.map((node) => node.outerHTML),
	);
	assert.deepEqual(unnamed, []);
	assert.deepEqual(await page.$$eval("h1, h2, h3", (list) => [...new Set(list.map((h) => h.tagName))]), ["H1", "H2"]);
});

for (const colorScheme of ["light", "dark"]) {
	for (const width of [320, 390, 1280]) {
		test(`in ${colorScheme}, ${width} px wide, it scrolls in one direction only and can be read`, async () => {
			const narrow = await newContext(browser, { viewport: { width, height: 844 }, colorScheme });
			try {
				const page = await narrow.newPage();
				await page.goto(hello.url + "/?user=" + "long".repeat(50));
				await connected(page);
				await push(page, { ack: "biz", data: JSON.stringify({ long: "word".repeat(100) }) });
				await page.waitForSelector("#messages li[data-event]");
				assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width, "it scrolls sideways");
				const low = await page.evaluate(contrasts);
				assert.deepEqual(low, []);
				const dark = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor.match(/\d+/g).every((c) => c < 64));
				assert.equal(dark, colorScheme === "dark");
				assert.deepEqual(narrow.complaints, []);
			} finally {
				await narrow.close();
			}
		});
	}
}

/** In the page: every text whose contrast is below WCAG AA's 4.5 to 1. */
function contrasts() {
	const rgb = (color) => color.match(/[\d.]+/g).map(Number);
	const luminance = ([r, g, b]) => {
		const [x, y, z] = [r, g, b].map((c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
		return 0.2126 * x + 0.7152 * y + 0.0722 * z;
	};
	const behind = (node) => {
		for (; node; node = node.parentElement) {
			const color = rgb(getComputedStyle(node).backgroundColor);
			if (color[3] !== 0) return color;
		}
		return [255, 255, 255];
	};
	const low = [];
	const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walker.nextNode()) {
		const node = walker.currentNode.parentElement;
		if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
		const [a, b] = [luminance(rgb(getComputedStyle(node).color)), luminance(behind(node))].sort((p, q) => q - p);
		const ratio = (a + 0.05) / (b + 0.05);
		if (ratio < 4.5) low.push(`${ratio.toFixed(2)}: ${walker.currentNode.textContent.trim().slice(0, 30)}`);
	}
	return low;
}

/** A web server that has nothing to do with the program. */
async function startSite(t) {
	const site = createServer((_, response) => response.writeHead(200, { "Content-Type": "text/html" }).end("<!doctype html><title>site</title>"));
	await new Promise((resolve) => site.listen(0, "127.0.0.1", resolve));
	t.after(() => {
		site.closeAllConnections();
		site.close();
	});
	return site.address().port;
}

/** Has a foreign page try a push and every way to connect, and tells which of these went well. */
const attempt = (page, url) =>
	page.evaluate(async (url) => {
		await fetch(url + "/push?user=alice&event=forged", { method: "POST", body: "1", mode: "no-cors" }).catch(() => {});
		const socket = (path) =>
			new Promise((resolve) => {
				const ws = new WebSocket(url.replace("http", "ws") + path);
				ws.onopen = () => resolve(true);
				ws.onerror = () => resolve(false);
			});
		const polling = fetch(url + "/socket.io/?EIO=4&transport=polling").then((answer) => answer.ok, () => false);
		return Promise.all([socket("/ws?user=alice"), socket("/socket.io/?EIO=4&transport=websocket"), polling]);
	}, url);

for (const [whose, host, may] of [["another site's", "site.example", false], ["this machine's", "127.0.0.1", true]]) {
	test(`${whose} pages can${may ? " connect and not" : " neither connect nor"} push`, async (t) => {
		const page = await open();
		const foreign = await context.newPage();
		await foreign.goto(`http://${host}:${await startSite(t)}/`);
		assert.deepEqual(await attempt(foreign, hello.url), [may, may, may]);
		assert.equal((await hello.stats()).refused.origin, may ? 0 : 3);
		assert.equal((await hello.push({ user: "alice", event: "last" }, 1)).status, 200);
		await page.waitForSelector("#messages li[data-event=last]");
		assert.deepEqual(await messages(page), [["last", "1"]]);
	});
}
