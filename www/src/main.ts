import "./tokens.css";
import { closeWaysOut } from "luthier-web";
import { mount } from "svelte";
import { registerServiceWorker } from "../offline/register";
import App from "./App.svelte";
import { watch } from "./state/privacy.svelte";
import { offerUpdate } from "./state/update.svelte";

// Before anything else: data come later.
closeWaysOut();
watch();
registerServiceWorker(offerUpdate);
mount(App, { target: document.getElementById("app")! });
