import "./tokens.css";
import { mount } from "svelte";
import App from "./App.svelte";
import { watchRequests } from "./state/privacy.svelte";

watchRequests();
mount(App, { target: document.getElementById("app")! });
